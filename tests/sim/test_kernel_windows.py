"""What a migration's window says of every token, counted step by step, however the trace is cut into runs."""

import numpy as np
import pytest

pytest.importorskip("numba")

from penstock.sim.kernel_windows import Look, seen
from penstock.sim.windows import open_windows
from penstock.trace.skip_trace import BitTrace, SkipBits, TraceShape

SHAPE = TraceShape(prefill_tokens=60, steps=40, layers=2)


def trace(level: float) -> BitTrace:
    draw = np.random.default_rng(7)
    flags = draw.random((SHAPE.steps, SHAPE.layers, SHAPE.words * 64)) < level
    flags &= np.arange(SHAPE.words * 64) < SHAPE.prefill_tokens + np.arange(SHAPE.steps)[:, None, None]
    return BitTrace(SHAPE, np.packbits(flags, axis=-1, bitorder="little").view("<u8"))


def flags_of(bits: SkipBits) -> np.ndarray:  # type: ignore[type-arg]
    return np.unpackbits(bits.view(np.uint8), axis=-1, bitorder="little")


@pytest.mark.parametrize("run_steps", [1, 7, 100])
@pytest.mark.parametrize("level", [0.2, 0.95])
@pytest.mark.parametrize(
    "look",
    [
        Look(1, 1, every=True, ranks=True),
        Look(1, 4, every=True, ranks=True),
        Look(1, 6, every=True, ranks=True),
        Look(1, 100, every=True, ranks=True),
        Look(-2, 0, every=False, ranks=False),
        Look(-2, 0, every=True, ranks=False),
        Look(0, 0, every=False, ranks=False),
    ],
)
def test_a_window_names_and_counts_what_its_steps_skip(
    look: Look, level: float, run_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.sim.windows.WINDOW_BYTES", run_steps * 8 * SHAPE.layers * SHAPE.words)
    whole = trace(level)
    skipped = flags_of(whole.bits)
    for window in open_windows(whole, back=max(0, -look.begin), ahead=max(0, look.end)):
        rows = seen(window, look, SHAPE.prefill_tokens)
        assert seen(window, look, SHAPE.prefill_tokens) is rows
        for row, step in enumerate(range(window.first, window.first + window.steps)):
            low, high = max(step + look.begin, 0), min(step + look.end, SHAPE.steps - 1)
            if low > high:
                continue
            exist = SHAPE.prefill_tokens + step
            count = skipped[low : high + 1, :, :exist].sum(axis=0)
            named = count == high + 1 - low if look.every else count > 0
            np.testing.assert_array_equal(flags_of(rows.named[row])[:, :exist], named)
            ranks = np.moveaxis(flags_of(rows.skips[row]), 1, -1)[:, :exist].astype(int)
            if look.ranks:
                weights = 1 << np.arange(ranks.shape[-1])
                np.testing.assert_array_equal((ranks * weights).sum(axis=-1)[~named], count[~named])


def test_without_a_look_there_is_nothing_to_see() -> None:
    window = next(iter(open_windows(trace(0.5), 0, 0)))
    assert not seen(window, None, SHAPE.prefill_tokens).named.size
