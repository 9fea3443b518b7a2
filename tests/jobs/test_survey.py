import json
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import UserError
from penstock.jobs.answers import Done, scan
from penstock.jobs.identity import answer_id, identity
from penstock.jobs.lines import Line
from penstock.jobs.records import answer_record, encode, fault_record
from penstock.jobs.request import Parsed
from penstock.jobs.survey import Survey, lines_to_go, resumed, survey
from penstock.outputs import CompletionOutput, RequestOutput

OUTPUT = RequestOutput("0", None, [1], [CompletionOutput(0, "b", [2], "stop")])
REQUESTS: list[Any] = [
    {"prompt": "é", "custom_id": "a", "max_tokens": 5},
    {"messages": [{"role": "user", "content": "12345"}, {"role": "user", "content": [{"type": "text", "text": "67"}]}]},
    {"prompt": "other", "custom_id": "a"},
    {"prompt": 5, "custom_id": "b"},
    {"prompt": "fine", "custom_id": "b"},
    {"prompt_token_ids": [1, 2, 3], "max_tokens": 7},
    "not a request",
]


def written(path: Path, requests: list[Any]) -> Path:
    path.write_text("\n\n".join(json.dumps(request) for request in requests))
    return path


def answered(path: Path, parsed: list[Parsed]) -> Done:
    """What is done once these lines were answered."""
    with path.open("ab") as file:
        for one in parsed:
            id = answer_id("model", one)
            file.write(encode(answer_record(one, id, OUTPUT, "m", 0) if one.fault is None else fault_record(one, id)))
    return scan(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(tmp_path / "in.jsonl", REQUESTS)


def test_a_new_job(source: Path) -> None:
    found = survey(source, "model", Done())
    assert (found.lines, found.done, found.to_go, found.faults, found.duplicates) == (7, 0, 3, 2, 2)
    assert (found.prompt_bytes, found.longest_prompt_bytes) == (2 + 7 + 12, 12)
    assert (found.max_tokens, found.longest_max_tokens, found.unsaid) == (12, 7, 1)
    assert (found.changed, found.strangers) == (None, 0)
    assert list(found.remarks(source, "out.jsonl")) == [
        "in.jsonl: 2 lines cannot be run, first line 7: prompt is a number, not a text",
        "in.jsonl: 2 lines with the custom_id of an earlier one, which alone is run",
    ]


def test_a_file_without_any_json_is_no_job(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello\n\nworld\n")
    with pytest.raises(UserError, match=r"^text\.txt: no line of 2 could be read; line 1: the line is not JSON .*"):
        survey(text, "model", Done()).check_readable(text)
    text.write_text('Hello\n{"prompt": 5}\n')
    survey(text, "model", Done()).check_readable(text)
    text.write_text("\n")
    survey(text, "model", Done()).check_readable(text)


def test_what_is_to_go_is_every_line_until_it_is_done(source: Path, tmp_path: Path) -> None:
    out, done = tmp_path / "out.jsonl", Done()
    for count in range(1, 8):
        found = survey(source, "model", done)
        found.check_unchanged(out)
        assert found.lines == 7 == found.done + found.to_go + found.faults + found.duplicates
        left = list(lines_to_go(source, found, done))
        assert found.done == 7 - len(left) == count - 1
        assert found.to_go == sum(parsed.fault is None for parsed in left)
        done = answered(out, left[-1:] if count % 2 else left[:1])
    assert survey(source, "model", done).done == 7
    assert len({json.loads(line)["id"] for line in out.read_text().splitlines()}) == 7


def test_the_first_line_with_a_custom_id_owns_it_though_it_has_a_fault(source: Path) -> None:
    left = list(lines_to_go(source, survey(source, "model", Done()), Done()))
    assert [(identity(parsed), parsed.code) for parsed in left] == [
        ("a", None),
        ("line-3", None),
        ("a", "duplicate"),
        ("b", "invalid_request"),
        ("b", "duplicate"),
        ("line-11", None),
        ("line-13", "invalid_json"),
    ]
    assert left[4].fault == 'custom_id "b" is that of line 7 already: give each line its own'


def test_duplicates_are_never_compared_with_the_first(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    left = list(lines_to_go(source, survey(source, "model", Done()), Done()))
    found = survey(source, "model", answered(out, left[:1]))
    assert (found.changed, found.done, found.duplicates) == (None, 1, 2)


@pytest.mark.parametrize(("changed", "name", "retry"), [(0, "a", False), (1, "line-3", False), (3, "b", True)])
def test_a_request_that_changed_is_named(source: Path, tmp_path: Path, changed: int, name: str, retry: bool) -> None:
    out = tmp_path / "out.jsonl"
    done = answered(out, list(lines_to_go(source, survey(source, "model", Done()), Done())))
    requests = [*REQUESTS]
    requests[changed] = {**requests[changed], "prompt": "new", "messages": None}
    found = survey(written(source, requests), "model", done)
    assert (found.changed, found.changed_error) == (name, retry)
    with pytest.raises(
        UserError, match=f"^{name} is answered in out.jsonl, but .* Use another -o, or --overwrite"
    ) as said:
        found.check_unchanged(out)
    assert ("--retry-errors" in str(said.value)) == retry


def test_another_model_changes_every_request(source: Path, tmp_path: Path) -> None:
    done = answered(tmp_path / "out.jsonl", list(lines_to_go(source, survey(source, "model", Done()), Done())))
    assert survey(source, "other", done).changed == "a"


def test_answers_without_a_line_are_counted(source: Path, tmp_path: Path) -> None:
    done = answered(tmp_path / "out.jsonl", list(lines_to_go(source, survey(source, "model", Done()), Done())))
    found = survey(written(source, REQUESTS[:2]), "model", done)
    assert (found.done, found.strangers, found.changed) == (2, 5, None)
    assert list(found.remarks(source, "out.jsonl")) == [
        "out.jsonl: 5 lines of which in.jsonl has none; kept as they are"
    ]


def test_error_lines_that_run_again_are_no_strangers(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = answered(out, list(lines_to_go(source, survey(source, "model", Done()), Done())))
    done.retries = True
    found = survey(source, "model", done)
    assert (found.done, found.strangers) == (3, 0)
    kept = found.kept()
    again = resumed(source, kept, scan(out))
    assert again is not None and (again.done, again.to_go) == (7, 0)
    assert resumed(source, {**kept, "strangers": 1}, done) is None, "it may have been an error line"


def test_a_line_that_the_survey_has_not_seen_owns_its_name() -> None:
    parsed = Survey().parse(Line(3, b'{"prompt": "a", "custom_id": "a"}'))
    assert (parsed.custom_id, parsed.fault) == ("a", None)


def test_a_kept_survey_holds_as_long_as_the_input_is_the_same(tmp_path):
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"custom_id": f"q{i % 8}", "prompt": "x" * (i + 1), "max_tokens": 3}) for i in range(10)]
    source.write_text("\n".join(lines) + "\n")
    whole = survey(source, "f", Done())
    kept = json.loads(json.dumps(whole.kept()))
    again = resumed(source, kept, Done())
    assert again is not None and (again.lines, again.done, again.to_go) == (10, 0, 10)
    assert again.longest_prompt_bytes == whole.longest_prompt_bytes == 8
    assert again.prompt_bytes == round(whole.prompt_bytes * 10 / 8)
    # who owns a custom_id is found as the lines are read
    assert [p.code for p in lines_to_go(source, again, Done())] == [p.code for p in lines_to_go(source, whole, Done())]
    assert [p.number for p in lines_to_go(source, again, Done()) if p.fault] == [9, 10]
    with source.open("a") as file:
        file.write(lines[0] + "\n")
    assert resumed(source, kept, Done()) is None
    assert resumed(source, {**kept, "lines": "10"}, Done()) is None
    assert resumed(source, None, Done()) is None


def test_the_index_of_a_job_that_goes_on_takes_its_memory_at_once(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps({"custom_id": f"q{i}", "prompt": "x"}) for i in range(1000)))
    whole = survey(source, "f", Done())
    again = resumed(source, json.loads(json.dumps(whole.kept())), Done())
    assert again is not None
    before = again.owners.nbytes
    assert len(list(lines_to_go(source, again, Done()))) == 1000
    assert again.owners.nbytes == before == whole.owners.nbytes > Survey().owners.nbytes


def test_what_is_appended_after_the_survey_is_for_the_next_start(source: Path) -> None:
    found = survey(source, "model", Done())
    with source.open("a") as file:
        file.write('\n{"prompt": "late"}\n')
    assert resumed(source, found.kept(), Done()) is None
    assert survey(source, "model", Done()).lines == found.lines + 1
