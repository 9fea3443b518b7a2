import json
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.jobs.answers import Answer, Done, drop_errors, repair, scan
from penstock.jobs.errors import JobStopped
from penstock.jobs.identity import answer_id, as_duplicate, key
from penstock.jobs.lines import Line
from penstock.jobs.records import answer_record, encode, fault_record
from penstock.jobs.request import Parsed, parse
from penstock.outputs import CompletionOutput, RequestOutput


def parsed(number: int, custom_id: str | None = None) -> Parsed:
    named = {} if custom_id is None else {"custom_id": custom_id}
    return parse(Line(number, json.dumps({"prompt": "a", **named}).encode()))


def answer(request: Parsed) -> bytes:
    id = answer_id("model", request)
    if request.fault is not None:
        return encode(fault_record(request, id))
    output = RequestOutput("0", "a", [1], [CompletionOutput(0, "é\n", [2, 3], "length")])
    return encode(answer_record(request, id, output, "m", 0))


def written(tmp_path: Path, *lines: bytes) -> Path:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"".join(lines))
    return path


REQUESTS = [
    parsed(1),
    parsed(2, "a"),
    as_duplicate(parsed(3, "a"), 2),
    parse(Line(4, b"{torn")),
    parsed(5, "line-1"),
    parse(Line(6, b'{"custom_id": "b", "prompt": 5}')),
]
LINES = [answer(request) for request in REQUESTS]


def test_a_scan_finds_every_key_with_its_id(tmp_path: Path) -> None:
    done = scan(written(tmp_path, *LINES))
    assert (len(done), done.answered, done.errors, done.torn_bytes) == (6, 3, 3, 0)
    assert done.tally.counts == {"duplicate": 1, "invalid_json": 1, "invalid_request": 1}
    assert done.tally.first == {"duplicate": 3, "invalid_json": 4, "invalid_request": 6}
    for request in REQUESTS:
        assert key(request) in done
        assert done.matches(key(request), answer_id("model", request))
        assert not done.matches(key(request), answer_id("other", request))
        assert done.is_error(key(request)) == (request.fault is not None)
    assert key(parsed(2)) not in done
    assert key(parsed(1, "line-2")) not in done
    assert not done.matches(key(parsed(2)), answer_id("model", parsed(2)))


def test_no_file_is_nothing_done(tmp_path: Path) -> None:
    assert len(scan(tmp_path / "missing")) == 0
    assert len(scan(written(tmp_path))) == 0
    with pytest.raises(UserError, match="Is a directory"):
        scan(tmp_path)


@pytest.mark.parametrize("before", [0, 3])
def test_cut_at_any_byte_of_the_last_line_the_whole_ones_are_found(tmp_path: Path, before: int) -> None:
    whole, last = b"".join(LINES[:before]), LINES[before]
    for size in range(len(last)):
        path = written(tmp_path, whole, last[:size])
        done = scan(path)
        assert (len(done), done.torn_bytes) == (before, size)
        assert repair(path, done) == size
        assert path.read_bytes() == whole
        assert len(scan(path)) == before
    assert len(scan(written(tmp_path, whole, last))) == before + 1


@pytest.mark.parametrize("torn", [bytes(5000), LINES[1][:40] + bytes(100), LINES[1][:40] + b"\n", bytes(9) + b"\n"])
def test_what_a_power_failure_leaves_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = written(tmp_path, LINES[0], torn)
    assert repair(path, scan(path)) == len(torn)
    assert path.read_bytes() == LINES[0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [LINES[0], LINES[1][:50] + b"\n", LINES[2]],
            r"line 2 of out\.jsonl is damaged .*delete it, or use another -o",
        ),
        ([LINES[0], b"\n", LINES[1], LINES[0]], r"line 4 of out\.jsonl answers line-1 again: delete one"),
        ([b'{"prompt": "a"}\n', LINES[0]], r"line 1 of out\.jsonl is not an answer that penstock wrote"),
        ([b"some notes\n"], "is not an answer that penstock wrote"),
        ([b"some notes"], "is not an answer that penstock wrote"),
        ([b'{"prompt": "a"}'], "is not an answer that penstock wrote"),
        ([LINES[0], b"[]\n"], "is not an answer that penstock wrote"),
        ([LINES[0].replace(b'"line": 1', b'"line": "1"')], r"line 1 of out\.jsonl is damaged"),
        ([LINES[1].replace(b'"custom_id": "a"', b'"custom_id": 5')], r"line 1 of out\.jsonl is damaged"),
        ([LINES[3].replace(b'"invalid_json"', b"[5]")], r"line 1 of out\.jsonl is damaged"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused_and_kept(
    tmp_path: Path, lines: list[bytes], message: str
) -> None:
    path = written(tmp_path, *lines)
    with pytest.raises(UserError, match=message) as caught:
        scan(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"".join(lines)


def test_error_lines_are_dropped_all_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, *LINES, LINES[0][:30])
    path.chmod(0o640)
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    assert drop_errors(link, scan(link)) == 3
    assert path.read_bytes() == LINES[0] + LINES[1] + LINES[4]
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    done = scan(path)
    assert (done.answered, done.errors, done.torn_bytes) == (3, 0, 0)
    assert drop_errors(path, done) == 0
    assert sorted(found.name for found in tmp_path.iterdir()) == ["link.jsonl", "out.jsonl"]


def test_where_errors_cannot_be_dropped_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, *LINES)

    def refuse(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(JobStopped, match="No space left on device"):
        drop_errors(path, scan(path))
    assert path.read_bytes() == b"".join(LINES)
    assert list(tmp_path.iterdir()) == [path]


def test_an_answer_counts_once() -> None:
    done = Done()
    assert done.add(Answer(b"k" * 16, "batch_req_" + "f" * 24, 1))
    assert not done.add(Answer(b"k" * 16, "batch_req_" + "0" * 24, 1, "too_long"))
    assert (done.answered, done.errors) == (1, 0)
