from penstock.trace.skip_trace import TraceShape


def test_how_many_steps_so_many_bytes_hold() -> None:
    shape = TraceShape(prefill_tokens=60, steps=10, layers=3)
    assert (shape.words, shape.step_bytes) == (2, 48)
    assert [shape.steps_in(nbytes) for nbytes in (1, 100, 10**6)] == [1, 2, 10]
