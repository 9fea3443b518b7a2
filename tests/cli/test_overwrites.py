from pathlib import Path

import pytest

from penstock.cli import main
from penstock.cli.overwrites import refuse_overwriting
from penstock.errors import UserError


def test_other_files_and_nothing_said_are_let_through(tmp_path: Path) -> None:
    refuse_overwriting({"--trace": "a", "--save": None}, {"-i": "b", "MODEL": "demo", "--plan": None})


def test_links_and_other_spellings_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for spelled in (tmp_path / "link", tmp_path / "." / ".." / tmp_path.name / "a"):
        with pytest.raises(UserError, match=r"--trace .* would be written over -i .*: give it another name"):
            refuse_overwriting({"--trace": str(spelled)}, {"-i": str(tmp_path / "a")})


def test_two_outputs_that_do_not_exist_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--plot x\.png would be written over --save x\.png"):
        refuse_overwriting({"--save": "x.png", "--plot": "x.png"}, {})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "demo", "-i", "{kept}", "--trace", "{kept}"], "--trace {kept} would be written over -i {kept}"),
        (["generate", "{kept}", "x", "--trace", "{kept}"], "--trace {kept} would be written over MODEL {kept}"),
        (["generate", "demo", "x", "--plan", "{kept}", "--trace", "{kept}"], "over --plan {kept}"),
        (["run-batch", "demo", "-i", "{kept}", "-o", "out", "--trace", "{kept}"], "over -i {kept}"),
        (["run-batch", "demo", "-i", "in", "-o", "{kept}", "--trace", "{kept}"], "over -o {kept}"),
        (["plan", "demo", "-i", "{kept}", "--save", "{kept}"], "--save {kept} would be written over -i {kept}"),
        (["plan", "{kept}", "--save", "{kept}"], "--save {kept} would be written over MODEL {kept}"),
        (["plan", "demo", "--machine", "{kept}", "--save", "{kept}"], "over --machine {kept}"),
        (["trace", "import", "{kept}", "{kept}", "--prefill-tokens", "4"], "over TEXT {kept}"),
    ],
)
def test_commands_refuse_before_anything_is_touched(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text('{"prompt": "hello"}\n')
    assert main([word.format(kept=kept) for word in words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message.format(kept=kept) in err
    assert kept.read_text() == '{"prompt": "hello"}\n'
