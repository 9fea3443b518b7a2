"""Driving an engine by hand: adding between sweeps, aborting, ends, and one load of each page per sweep."""

import json
from collections import Counter

import pytest
from tests.parity import families
from tests.parity.harness import Trail, engine_of, greedy
from tests.parity.reference import generate

from penstock.errors import UserError
from penstock.memory.clock import Clock

PROMPTS = ([5, 17, 40, 8, 22, 61, 9, 33, 12], [70, 3, 14], [90, 41, 6, 27, 55])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The checkpoint of a tiny model, and its answers of 8 tokens."""
    path, model = tmp_path_factory.mktemp("llama"), families.build("llama")
    model.save_pretrained(path)
    return path, [generate(model, prompt, 8).tokens for prompt in PROMPTS]


def finish(engine):
    """Sweep to the end; the rows that ended, in order."""
    ended = []
    while (report := engine.sweep()) is not None:
        ended += report.finished
    return ended


def test_requests_may_be_added_between_sweeps(llama):
    path, answers = llama
    with engine_of(path, [9, 3, 5], 8) as engine:
        rows = [engine.add("0", PROMPTS[0], greedy(8))]
        engine.sweep()
        engine.sweep()
        rows.append(engine.add("1", PROMPTS[1], greedy(8)))
        engine.sweep()
        rows.append(engine.add("2", PROMPTS[2], greedy(8)))
        assert finish(engine) == rows
        assert [engine.sequences[row].generated for row in rows] == answers
        assert engine.sweep() is None


def test_a_report_says_what_was_drawn_and_computed(llama):
    path, answers = llama
    with engine_of(path, [9, 3], 2) as engine:
        rows = [engine.add(str(i), PROMPTS[i], greedy(2)) for i in range(2)]
        first, second = engine.sweep(), engine.sweep()
    assert (first.prefill_tokens, first.decode_tokens, first.rows) == (12, 0, 2)
    assert (second.prefill_tokens, second.decode_tokens, second.rows) == (0, 2, 2)
    assert first.drawn == {row: answers[row][0] for row in rows} and not first.finished
    assert set(second.finished) == set(rows)


def test_aborting_frees_blocks_and_leaves_others_alone(llama):
    path, answers = llama
    with engine_of(path, [9, 3, 5], 8) as engine:
        rows = [engine.add(str(i), prompt, greedy(8)) for i, prompt in enumerate(PROMPTS)]
        engine.sweep()
        before = engine.scheduler.blocks_in_use("cpu")
        engine.abort(rows[1])
        assert engine.scheduler.blocks_in_use("cpu") < before
        assert rows[1] not in engine.sequences
        assert set(finish(engine)) == {rows[0], rows[2]}
        assert engine.sequences[rows[0]].generated == answers[0]
        assert engine.sequences[rows[2]].generated == answers[2]
        assert engine.scheduler.blocks_in_use("cpu") == 0


def test_a_row_that_waits_or_prefills_can_be_aborted(llama):
    path, answers = llama
    with engine_of(path, [9, 3, 5], 8, rows=1, sweep_tokens=4, batch_tokens=4) as engine:
        rows = [engine.add(str(i), prompt, greedy(8)) for i, prompt in enumerate(PROMPTS)]
        engine.sweep()  # 4 of the first prompt's 9 tokens
        engine.abort(rows[0])
        engine.abort(rows[1])
        engine.abort(rows[1])  # a second time is no error
        assert finish(engine) == [rows[2]]
        assert engine.sequences[rows[2]].generated == answers[2]


def test_stop_ids_end_a_row_and_length_ends_another(llama):
    path, answers = llama
    stop = answers[0][3]
    at = answers[0].index(stop)
    with engine_of(path, [9, 3], 8) as engine:
        first = engine.add("0", PROMPTS[0], greedy(8, stop_ids=[stop]))
        second = engine.add("1", PROMPTS[1], greedy(5))
        finish(engine)
        assert engine.sequences[first].generated == answers[0][: at + 1]
        assert engine.sequences[first].finish_reason == "stop"
        assert engine.sequences[second].generated == answers[1][:5]
        assert engine.sequences[second].finish_reason == "length"


def test_a_row_whose_logits_are_not_finite_ends_alone(llama):
    path, answers = llama

    def spoil(row, position, logits):
        if row == 1 and position == len(PROMPTS[1]) + 2:
            logits[5] = float("nan")

    with engine_of(path, [9, 3], 8) as engine:
        rows = [engine.add(str(i), PROMPTS[i], greedy(8)) for i in range(2)]
        engine.observe = spoil
        assert finish(engine) == [rows[1], rows[0]]
        ended = [engine.sequences[row] for row in rows]
        assert engine.scheduler.blocks_in_use("cpu") == 0
    assert [one.generated for one in ended] == [answers[0], answers[1][:2]]
    assert [one.finish_reason for one in ended] == ["length", "error"]


def test_a_watcher_ends_a_row(llama):
    path, answers = llama
    with engine_of(path, [9], 8) as engine:
        row = engine.add("0", PROMPTS[0], greedy(8))
        seen = []
        engine.sequences[row].watch = lambda token: bool(seen.append(token)) or len(seen) == 2
        finish(engine)
        assert engine.sequences[row].generated == seen == answers[0][:2]
        assert engine.sequences[row].finish_reason == "stop"


def test_a_sweep_that_wants_no_logits_leaves_the_head_alone(llama):
    path, answers = llama
    how = {"weights": "disk", "sweep_tokens": 4, "batch_tokens": 4, "page_bytes": 200_000}
    with engine_of(path, [9], 3, **how) as engine:
        (head,) = (page.index for page in engine.pager._pages if page.kind == "head")
        row = engine.add("0", PROMPTS[0], greedy(3))
        asked = []
        while engine.sweep() is not None:
            asked.append(head in engine._order[False])
        assert asked == [False, False, True, True, True]
        assert engine.sequences[row].generated == answers[0][:3]


def test_an_interrupted_sweep_gives_its_page_back(llama):
    path, answers = llama

    def interrupt(*_):
        raise KeyboardInterrupt

    with engine_of(path, [9, 3], 8, weights="disk", slots=1) as engine:
        for attempt in range(2):
            row, engine.observe = engine.add(str(attempt), PROMPTS[0], greedy(8)), interrupt
            with pytest.raises(KeyboardInterrupt):
                engine.sweep()
            engine.abort(row)
        engine.observe = None
        row = engine.add("2", PROMPTS[0], greedy(8))
        assert finish(engine) == [row]
        assert engine.sequences[row].generated == answers[0]


def test_what_cannot_be_generated_is_refused(llama):
    with engine_of(llama[0], [9], 8) as engine:
        with pytest.raises(UserError):
            engine.add("0", [], greedy(8))
        assert engine.sweep() is None


@pytest.mark.parametrize("slots", [1, 3])
def test_every_streamed_page_is_loaded_once_a_sweep(llama, tmp_path, slots):
    """Whatever the number of micro-batches."""
    clock = Clock(tracing=True)
    # pages so large that every one has a name of its own
    how = {"weights": "cpu=30%,disk=70%", "slots": slots, "sweep_tokens": 40, "batch_tokens": 4, "page_bytes": 200_000}
    with engine_of(llama[0], [9, 3, 5], 8, clock=clock, **how) as engine:
        trail = Trail()
        trail.watch(engine)
        for i, prompt in enumerate(PROMPTS):
            engine.add(str(i), prompt, greedy(8))
        finish(engine)
    clock.write_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    loads = Counter(event["name"] for event in events if event.get("cat") == "disk→cpu")
    rows = {name for name in loads if name.startswith("rows of ")}  # of the embedding, as calls ask for them
    streamed = {name: count for name, count in loads.items() if count > 1 and name not in rows}  # the others rest
    assert trail.micro_batches > 3 and len(streamed) > 3 and rows
    assert min(streamed.values()) >= len(trail.sweeps) == 8
    assert sum(streamed.values()) - 8 * len(streamed) <= slots  # the ring reads ahead for a sweep that does not come
