from pathlib import Path

import numpy as np
import pytest
from tests.trace.made import all_bits, random_bits, step_of

import penstock.trace.writer
from penstock.errors import UserError
from penstock.trace.coded import CodedTrace
from penstock.trace.header import TraceHeader
from penstock.trace.skip_trace import TraceShape
from penstock.trace.writer import TraceWriter, chunk_steps_for

HEADER = TraceHeader(100, 2, "top-k", parameters={"k": 64})


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.skip"
    path.write_bytes(b"what was there before")
    plain = random_bits(TraceShape(100, 9, 2))
    with TraceWriter(path, HEADER, chunk_steps=4) as writer:
        for step in plain.bits:
            writer.append(step)
        assert path.read_bytes() == b"what was there before"
        trace = writer.close(mass_kept=0.98)
    assert [file.name for file in tmp_path.iterdir()] == ["run.skip"]
    assert CodedTrace.open(path) == trace
    assert trace.header.parameters == {"k": 64, "mass_kept": 0.98}
    assert np.array_equal(all_bits(trace), plain.bits)


def test_what_is_not_closed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), TraceWriter(tmp_path / "run.skip", HEADER) as writer:
        writer.append(np.zeros((2, 2), np.uint64))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_trace_has_a_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one step"), TraceWriter(tmp_path / "run.skip", HEADER) as writer:
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_step_may_be_as_wide_as_it_needs_or_wider() -> None:
    narrow, wide = [TraceWriter(None, HEADER, chunk_steps=4) for _ in range(2)]
    for tokens in ([], [99], [0, 100], *[[7]] * 40):
        narrow.append(step_of(tokens, 2, narrow.words))
        wide.append(step_of(tokens, 2, 9))
    assert np.array_equal(all_bits(narrow.close()), all_bits(wide.close()))


@pytest.mark.parametrize(
    "bits",
    [
        np.zeros((3, 2), np.uint64),
        np.zeros((2, 1), np.uint64),
        np.zeros((2, 2), np.int64),
        np.zeros(4, np.uint64),
        step_of([100], 2, 2),
        step_of([128], 2, 3),
    ],
    ids=["layers", "words", "dtype", "axes", "token", "later token"],
)
def test_what_is_no_step_is_refused(bits: np.ndarray) -> None:
    with TraceWriter(None, HEADER) as writer, pytest.raises(ValueError, match=r"uint64 \[2 layers, 2 words\]|exist"):
        writer.append(bits)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "there", tmp_path / "nowhere" / "run.skip"):
        with pytest.raises(UserError, match="cannot be written") as caught:
            TraceWriter(path, HEADER)
        assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_a_full_disk_is_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    sink = penstock.trace.writer.Sink(None, 0)
    sink._path, sink._file = full, full.open("wb", buffering=0)
    with pytest.raises(UserError, match="No space left"):
        sink.write(b"more")


def test_too_large_a_step_is_refused_before_anything_is_held(tmp_path: Path) -> None:
    for tokens, layers in ((1 << 33, 3), (1 << 50, 1), (0, 1 << 40)):
        with pytest.raises(UserError, match="holds 256 MiB at once: take fewer"):
            TraceWriter(tmp_path / "run.skip", TraceHeader(tokens, layers, "x"))
    assert list(tmp_path.iterdir()) == []


def test_steps_that_outgrow_a_chunk_are_refused() -> None:
    with (
        pytest.raises(UserError, match=r"64 steps × 1,024 layers × .* tokens are"),
        TraceWriter(None, TraceHeader(0, 1024, "x"), chunk_steps=64) as writer,
    ):
        writer.steps = 64 * 600  # as if so many had been written
        writer.append(np.zeros((1024, 600), np.uint64))


def test_a_header_without_room_leaves_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="shorten its parameters"),
        TraceWriter(tmp_path / "run.skip", TraceHeader(9, 1, "x")) as writer,
    ):
        writer.append(np.zeros((1, 1), np.uint64))
        writer.close(note="n" * 20_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("layers", "words", "steps"), [(32, 533, 30), (80, 288, 22), (2, 3, 64), (10**4, 10**3, 1)])
def test_chunks_fit_a_cache(layers: int, words: int, steps: int) -> None:
    assert chunk_steps_for(layers, words) == steps
