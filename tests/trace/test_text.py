import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trace.made import flags

from penstock.errors import UserError
from penstock.trace.coded import CodedTrace
from penstock.trace.text import Imported, import_text

GOOD = """\
n,l,s,ids,skip_layer
10,0,0,[1,2, 3],False
10,0,1,[],True
# a note
10,1,0,[],1

11,1,0,"[10]",0
11,0,0,[],false
"""


def imported(tmp_path: Path, text: str | bytes, **more: int) -> Imported:
    source = tmp_path / "study.txt"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    return import_text(source, None, **{"prefill_tokens": 10, **more})


def skipped(trace: CodedTrace) -> list[list[list[int]]]:
    """[step][layer] → tokens."""
    return [[layer.nonzero()[0].tolist() for layer in step] for step in flags(trace)]


def wrong(tmp_path: Path, text: str | bytes, **more: int) -> str:
    with pytest.raises(UserError) as caught:
        imported(tmp_path, text, **more)
    assert "\n" not in str(caught.value) and "study.txt" in str(caught.value)
    return str(caught.value)


def test_lines_are_sets(tmp_path: Path) -> None:
    found = imported(tmp_path, GOOD)
    assert skipped(found.trace) == [[[1, 2, 3], list(range(10))], [[], [10]]]
    assert found.mlp_lines == 1
    assert found.trace.header.rule == "import"


def test_it_is_written_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "study.txt").write_text(GOOD)
    found = import_text(tmp_path / "study.txt", tmp_path / "a.skip", prefill_tokens=10)
    assert skipped(CodedTrace.open(tmp_path / "a.skip")) == skipped(found.trace)


def test_steps_may_be_counted_from_elsewhere(tmp_path: Path) -> None:
    text = GOOD.replace("10,", "0,", 2).replace("\n10,1", "\n0,1").replace("\n11,", "\n1,")
    assert skipped(imported(tmp_path, text, first_step=0).trace) == skipped(imported(tmp_path, GOOD).trace)


def test_layers_may_be_more_than_are_named(tmp_path: Path) -> None:
    assert imported(tmp_path, GOOD, layers=5).trace.shape.layers == 5


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_windows_files_are_read(tmp_path: Path, end: str) -> None:
    text = b"\xef\xbb\xbf" + GOOD.replace("\n", end).encode()
    assert skipped(imported(tmp_path, text).trace) == skipped(imported(tmp_path, GOOD).trace)


steps = st.lists(
    st.lists(st.none() | st.sets(st.integers(0, 9), max_size=6), min_size=2, max_size=2), min_size=1, max_size=5
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_any_sets_are_read(tmp_path_factory: pytest.TempPathFactory, steps: list[list[set[int] | None]]) -> None:
    lines = [
        f"{10 + step},{layer},0,{[] if tokens is None else sorted(tokens)},{tokens is None}"
        for step, layers in enumerate(steps)
        for layer, tokens in enumerate(layers)
    ]
    found = imported(tmp_path_factory.mktemp("text"), "\n".join(lines))
    assert skipped(found.trace) == [
        [list(range(10 + step)) if tokens is None else sorted(tokens) for tokens in layers]
        for step, layers in enumerate(steps)
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("11,0,0,[1,2", "line 9: '11,0,0,[1,2' is not n,l,s,[ids],skip_layer"),
        ("11,0,0,[1,2],", "is not n,l,s"),
        ("11,0,2,[1],0", "is not n,l,s"),
        ("11,0,0,[1],maybe", "is not n,l,s"),
        ("11,0,0,[-1],0", "is not n,l,s"),
        ("11,0,0,[__import__('os')],0", "is not n,l,s"),
        ("11,0,0,[٣],0", "is not n,l,s"),
        ("11,0,0,[1,,2],0", "ids are no list of numbers"),
        ("11,0,0,[1 2],0", "ids are no list of numbers"),
        ("11,0,0,[1,],0", "ids are no list of numbers"),
        (f"11,0,0,[{'9' * 5000}],0", "ids are no list of numbers"),
        (f"11,0,0,[{'9' * 50}],0", "is skipped at a step that has tokens 0 to 10"),
        ("11,0,0,[11],0", "token 11 is skipped at a step that has tokens 0 to 10"),
        ("11,0,1,[11],0", "token 11 is skipped at a step that has tokens 0 to 10"),
        ("11,1,0,[],0", "a second line for step 11, layer 1, s = 0"),
        ("10,0,0,[],0", "step 10 after step 11: sort the lines"),
        ("9,0,0,[],0", "step 9 comes before the first, 10"),
        ("13,0,0,[],0", "step 13, and no line for step 12: write 12,0,0,[],0"),
        ("999999999999,0,0,[],0", "no line for step 12"),
        ("11,99999,0,[],0", "layer 99,999"),
        ("\x00" * 500, "is not n,l,s"),
    ],
)
def test_a_damaged_line_is_told_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    message = wrong(tmp_path, GOOD.replace("11,0,0,[],false\n", "# nothing\n") + line)
    assert "line 9: " in message and said in message and len(message) < 400


def test_bytes_that_are_no_text_are_a_damaged_line(tmp_path: Path) -> None:
    assert "line 9: " in wrong(tmp_path, GOOD.encode() + b"\xff\xfe\x80")


def test_a_layer_beyond_those_given(tmp_path: Path) -> None:
    assert "line 5: layer 1 of a model of 1" in wrong(tmp_path, GOOD, layers=1)


def test_the_first_step_must_be_there(tmp_path: Path) -> None:
    assert "no line for step 9" in wrong(tmp_path, GOOD, prefill_tokens=9)
    assert "--first-step" in wrong(tmp_path, GOOD, prefill_tokens=11)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a note\n", "n,l,s,ids,skip_layer\n"])
def test_a_text_without_lines(tmp_path: Path, text: str) -> None:
    assert "has no line of a trace" in wrong(tmp_path, text)


def test_a_text_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        import_text(tmp_path / "none.txt", None, prefill_tokens=1)


def test_a_mistake_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "study.txt").write_text(GOOD + "oops")
    with pytest.raises(UserError):
        import_text(tmp_path / "study.txt", tmp_path / "a.skip", prefill_tokens=10, layers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["study.txt"]


@pytest.mark.parametrize("head", ["n,l,s,ids,skip_layer", "N, l, s, [ids], skip", "n,l,s"])
def test_a_first_line_of_names_is_passed_over(tmp_path: Path, head: str) -> None:
    text = GOOD.replace("n,l,s,ids,skip_layer", head)
    assert skipped(imported(tmp_path, text).trace) == skipped(imported(tmp_path, GOOD).trace)
    assert "line 2: " in wrong(tmp_path, "# a note\n" + text)


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="can be read only once, and its layers are counted first: give --layers"):
        import_text(pipe, None, prefill_tokens=10)
    threading.Thread(target=lambda: pipe.write_text(GOOD), daemon=True).start()
    found = import_text(pipe, None, prefill_tokens=10, layers=2)
    assert skipped(found.trace) == skipped(imported(tmp_path, GOOD).trace)


def test_what_has_no_lines_is_not_held_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.trace.text._LONGEST_BYTES", 30)
    assert "line 9: longer than 30 B, where a line is n,l,s,[ids]" in wrong(tmp_path, GOOD + "#" * 40)


def test_more_than_a_trace_holds_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a trace holds 256 MiB at once"):
        imported(tmp_path, GOOD, prefill_tokens=10**12)
    with pytest.raises(UserError, match="a trace holds 256 MiB at once"):
        imported(tmp_path, GOOD, layers=10**9)


def test_a_text_that_begins_later_is_told_how(tmp_path: Path) -> None:
    told = wrong(tmp_path, GOOD, prefill_tokens=7)
    assert "no line for step 7: write 7,0,0,[],0 if it skips nothing, or say with --prefill-tokens" in told
    assert "--prefill-tokens" not in wrong(tmp_path, GOOD + "13,0,0,[],0")
