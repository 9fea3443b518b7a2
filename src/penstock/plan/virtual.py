"""A job on a virtual clock: the engine's own scheduler makes its sweeps, the cost model says how long each takes.

So mixed phases, admission, ragged lengths, rows that give way and the tail of a job are predicted by construction.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from penstock.machine.machine import Machine
from penstock.plan.case import Case
from penstock.plan.load import Load, load_of, together
from penstock.plan.plan import Prediction
from penstock.plan.policy import Tier
from penstock.plan.shape import ModelShape
from penstock.plan.split_cost import cost_of
from penstock.plan.tally import Tally
from penstock.plan.types import Length, Placement
from penstock.schedule.scheduler import Scheduler
from penstock.schedule.types import Request

AHEAD = 1024  # prompts that wait for room, as in a run
_MOST_SWEEPS = 500  # priced one by one; a longer job is extended from its middle


class VirtualRun:
    """Runs jobs of a case's model on its machine as a placement says."""

    def __init__(self, case: Case, placement: Placement) -> None:
        self.case, self.placement = case, placement
        self._cost = cost_of(case.shape, case.machine, placement.policy, placement.homes)
        self._windows = any(layer.window is not None for layer in case.shape.attention)

    def predict(self, lengths: Sequence[Length], most_sweeps: int = _MOST_SWEEPS) -> Prediction:
        """What becomes of a job. A job of very many rows is cut to two shorter ones, whose difference is its middle.

        most_sweeps: priced one by one, about; never fewer than three generations of rows need.
        """
        shown = rows_shown(self.case, self.placement, lengths, most_sweeps)
        return in_part(lambda count: self.first(lengths[:count]), shown, len(lengths))

    def first(self, lengths: Sequence[Length]) -> Prediction:
        """The same of a job that is run to its end, every sweep priced."""
        scheduler = Scheduler(
            self.placement.policy,
            self.case.groups,
            self.placement.kv,
            self.case.shape.footprint.block_tokens,
            self.placement.policy.kv_tier(self.case.compute),
            chunking=self.case.chunking,
            sharing=any(one.ids is not None for one in lengths),
        )
        coming: Iterator[tuple[int, Length]] = iter(enumerate(lengths))
        written, fresh_for_prompts, fresh_for_decode = 0, 0.0, 0.0  # bytes
        left: dict[int, int] = {}
        prompts: dict[int, int] = {}
        tally = Tally[tuple[Load, ...]]()
        while True:
            while scheduler.waiting < AHEAD and (one := next(coming, None)) is not None:
                index, length = one
                ids = length.ids if length.ids is not None else range(length.prompt)
                row = scheduler.add(Request(str(index), ids, length.most or length.generated))
                left[row], prompts[row] = length.generated, length.prompt
            sweep = scheduler.next()
            if sweep is None:
                break
            ended = []
            prefill = tokens = samples = 0
            rows = set()
            for batch in sweep.micro_batches:
                for span in batch:
                    row, count = span.row, span.count
                    tokens += count
                    rows.add(row)
                    if span.first < prompts[row]:
                        prefill += count
                    if span.samples:
                        left[row] -= 1
                        samples += 1
                        if left[row] <= 0:
                            ended.append(row)
            scheduler.done(sweep, ended)
            loads = together(load_of(batch, self._windows) for batch in sweep.micro_batches)
            spans = sum(map(len, sweep.micro_batches))
            tally.add(loads, prefill, tokens - prefill, samples, len(rows), spans)
            # the lowest blocks are handed out first: only beyond the most that were in use are any new
            fresh = max(0, scheduler.blocks_in_use(self.case.compute) - written)
            written += fresh
            fresh_for_prompts += fresh * prefill / tokens
            fresh_for_decode += fresh * (1 - prefill / tokens)
        tokens_in = sum(one.prompt for one in lengths)
        hidden = hidden_tokens(self.case.shape, self.case.machine, self._cost.held)
        prediction = tally.prediction(self._cost.prices, tokens_in, hidden, whole=True)
        return self._with_fresh(prediction, fresh_for_prompts, fresh_for_decode)

    def _with_fresh(self, prediction: Prediction, for_prompts: float, for_decode: float) -> Prediction:
        """With so many bytes of KV written to memory that the system has to give first."""
        rate, lane = self.case.machine.processors[self.case.compute].fresh_bytes_per_s, f"{self.case.compute}-compute"
        seconds = (for_prompts + for_decode) / rate
        return replace(
            prediction,
            seconds=prediction.seconds + seconds,
            prefill_s=prediction.prefill_s + for_prompts / rate,
            decode_s=prediction.decode_s + for_decode / rate,
            lanes={**prediction.lanes, lane: prediction.lanes.get(lane, 0.0) + seconds},
        )


def hidden_tokens(shape: ModelShape, machine: Machine, held: Mapping[Tier, int]) -> float:
    """T*: the tokens whose products take as long as one sweep's pages take on the slowest link; 0 without streaming.

    held: bytes of pages by the tier that they rest on.
    """
    on_cpu, on_disk = held["cpu"], held["disk"]
    seconds = 0.0
    if on_disk:
        seconds = machine.links["disk→cpu"].seconds(on_disk)
    if machine.compute == "gpu" and (on_cpu or on_disk):
        seconds = max(seconds, machine.links["cpu→gpu"].seconds(on_cpu + on_disk))
    fastest = machine.processors[machine.compute].curve(shape.arithmetic).at(1 << 20)
    return seconds * fastest / shape.token_flops if shape.token_flops else 0.0


def in_part(run: Callable[[int], Prediction], shown: int, rows: int) -> Prediction:
    """What ``run`` says of all rows of a job, from what it says of the first so many, and of half of these."""
    half = shown // 2
    if rows <= half + shown:  # the whole is no more work than both parts
        return run(rows)
    return _extended(run(half), run(shown), half, shown, rows)


def rows_shown(case: Case, placement: Placement, lengths: Sequence[Length], most_sweeps: int = _MOST_SWEEPS) -> int:
    """The first rows of a job that show how it goes: several fillings of the rows in flight, maybe more than it has."""
    tokens = sum(one.generated for one in lengths) / max(1, len(lengths))
    rows = _rows_held(case, placement, lengths)
    return max(6 * rows, int(most_sweeps * rows / max(1.0, tokens)))


def continued(part: Prediction, outlined: Prediction, outline: Prediction) -> Prediction:
    """A whole job, from a run of its first rows and sketches of just these and of all: as the sketch of all has it,
    times what the run made of its own sketch."""

    def on(run: float, sketched: float, whole: float) -> float:
        return whole * run / sketched if sketched else whole

    return replace(
        part,
        seconds=on(part.seconds, outlined.seconds, outline.seconds),
        prefill_s=on(part.prefill_s, outlined.prefill_s, outline.prefill_s),
        decode_s=on(part.decode_s, outlined.decode_s, outline.decode_s),
        tokens_in=outline.tokens_in,
        prefill_tokens=round(on(part.prefill_tokens, outlined.prefill_tokens, outline.prefill_tokens)),
        decode_tokens=round(on(part.decode_tokens, outlined.decode_tokens, outline.decode_tokens)),
        tokens_out=outline.tokens_out,
        sweeps=round(on(part.sweeps, outlined.sweeps, outline.sweeps)),
        rows_mean=on(part.rows_mean, outlined.rows_mean, outline.rows_mean),
        lanes={
            lane: on(busy, outlined.lanes.get(lane, 0.0), outline.lanes.get(lane, 0.0))
            for lane, busy in part.lanes.items()
        },
        whole=False,
    )


def _rows_held(case: Case, placement: Placement, lengths: Sequence[Length]) -> int:
    """Rows in flight, about, by the KV that they hold halfway through what they generate."""
    footprint = case.shape.footprint
    tokens = sum(one.prompt + one.generated / 2 for one in lengths) / len(lengths)
    row_bytes = (tokens / footprint.block_tokens + 1) * footprint.kv_block
    held = int(sum(placement.kv.values()) / row_bytes) if row_bytes else placement.policy.rows
    return max(1, min(held, placement.policy.rows, len(lengths)))


def _extended(short: Prediction, long: Prediction, few: int, many: int, rows: int) -> Prediction:
    """The job of ``rows`` rows: the longer of two runs, and its difference to the shorter as often as needed."""
    times = (rows - many) / (many - few)

    def on(short: float, long: float) -> float:
        return long + times * (long - short)

    sweeps = round(on(short.sweeps, long.sweeps))
    return replace(
        long,
        seconds=on(short.seconds, long.seconds),
        prefill_s=on(short.prefill_s, long.prefill_s),
        decode_s=on(short.decode_s, long.decode_s),
        tokens_in=round(on(short.tokens_in, long.tokens_in)),
        prefill_tokens=round(on(short.prefill_tokens, long.prefill_tokens)),
        decode_tokens=round(on(short.decode_tokens, long.decode_tokens)),
        tokens_out=round(on(short.tokens_out, long.tokens_out)),
        sweeps=sweeps,
        rows_mean=on(short.rows_mean * short.sweeps, long.rows_mean * long.sweeps) / sweeps,
        lanes={lane: on(short.lanes.get(lane, 0.0), busy) for lane, busy in long.lanes.items()},
        whole=False,
        priced=short.priced + long.priced,
    )
