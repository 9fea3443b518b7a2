"""A user's own policies: found in a file, run as they are, and told what they got wrong."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import UserError
from penstock.sim.memories import Memories
from penstock.sim.policy import Moves
from penstock.sim.registry import load_policy
from penstock.sim.scenario import Scenario
from penstock.sim.simulator import simulate
from penstock.sim.view import View
from penstock.trace.skip_trace import BitTrace, TraceShape

SCENARIO = Scenario("two", Memories(3000, 1000, 100, 100, 200), 2, 100, 100, 10, 4, 6)
SHAPE = TraceShape(4, 6, 2)
TRACE = BitTrace(SHAPE, np.arange(12, dtype=np.uint64).reshape(6, 2, 1) % 8)

# The same rule as the migration look-ahead-layer.
NEXT_STEP = """
import numpy as np
from penstock.sim.policy import Moves


class NextStep:
    ahead = 1

    def moves(self, view):
        for step in view.ahead(1):
            here, exist = view.hbm[view.layer], view.exist[view.layer]
            outs = np.flatnonzero(view.skipped(step) & here)
            ins = np.flatnonzero(view.read(step) & exist & ~here)[::-1]
            return Moves(*(np.column_stack((t, np.full_like(t, view.layer))) for t in (outs, ins)))
        return Moves()


class Odd:
    def in_hbm(self, view):
        return view.step % 2 == 1
"""


def file(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


def test_a_policy_from_a_file_runs_like_any_other(tmp_path: Path) -> None:
    mine = file(tmp_path, NEXT_STEP)
    own = simulate(SCENARIO, TRACE, "prefer-hbm", f"{mine}:NextStep")
    same = simulate(SCENARIO, TRACE, "prefer-hbm", "look-ahead-layer", form="numpy")
    assert own.traffic == same.traffic and own.time_s == same.time_s
    assert own.clairvoyant and own.migration == f"{mine}:NextStep"
    placed = simulate(SCENARIO, TRACE, f"{mine}:Odd", "none")
    assert placed.traffic.ext_written == 3 * 2 * 10
    slack = simulate(SCENARIO, TRACE, "prefer-hbm", f"{mine}:NextStep:budget=slack")
    assert slack.migration.endswith(":NextStep:budget=slack")


class Moving:
    """Moves what it is given."""

    def __init__(self, **lists: object) -> None:
        self.lists = {name: np.array(items) for name, items in lists.items()}

    def moves(self, view: View) -> Moves:
        return Moves(**self.lists)


class Ragged:
    """Moves lists of different lengths."""

    def moves(self, view: View) -> Moves:
        return Moves(outs=[[0, 0], [1]])  # type: ignore[arg-type]  # so may a user


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Moving(outs=[[9, 0]]), "moves out the item of token 9 at layer 0, which does not exist"),
        (Moving(outs=[[1, 2]]), "moves out the item of token 1 at layer 2, which does not exist"),
        (Moving(ins=[[4, 1]]), "moves in the item of token 4 at layer 1, which does not exist"),
        (Moving(ins=[[1, 1]]), "moves in the item of token 1 at layer 1, which is in HBM already"),
        (Moving(outs=[[1, 1], [1, 1]]), "moves out the item of token 1 at layer 1, twice"),
        (Moving(outs=[1, 1]), r"must be whole numbers \[count, 2\]"),
        (Moving(outs=[[0.5, 1.0]]), r"must be whole numbers \[count, 2\]"),
        (Moving(outs=[[2**70, 0]]), r"must be whole numbers \[count, 2\]"),
        (Ragged(), r"must be whole numbers \[count, 2\]"),
    ],
)
def test_moves_of_what_is_not_there_are_refused(policy: Moving, said: str) -> None:
    with pytest.raises(UserError, match=f"(Moving|Ragged) at step 4, layer 0.*{said}"):
        simulate(SCENARIO, TRACE, "prefer-hbm", policy)


def test_moves_out_of_what_is_outside_are_refused() -> None:
    class Twice:
        def moves(self, view: View) -> Moves:
            return Moves(outs=np.array([[0, 0]]))

    with pytest.raises(
        UserError, match="Twice at step 4, layer 1 moves out the item of token 0 at layer 0, which is not"
    ):
        simulate(SCENARIO, TRACE, "prefer-hbm", Twice())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", "at step 4, layer 0 raised ZeroDivisionError: division by zero"),
        ("return view.skipped(5).any()", "asks for step 5, but sees 4 to 4: set ahead or back"),
        ("return 'hbm'", "in_hbm returned 'hbm': return True or False"),
        *(
            (f"view.{seen} = 0", "raised ValueError: assignment destination is read-only")
            for seen in (
                "hbm[0, 0]",
                "read_from_hbm[:]",
                "read_from_ext[:]",
                "skipped(view.step)[0]",
                "skip_counts(range(4, 5))[0]",
                "start.attn_bytes[:]",
                "start.items[:]",
            )
        ),
    ],
)
def test_what_a_policy_raises_names_its_place(tmp_path: Path, body: str, said: str) -> None:
    mine = file(tmp_path, f"class Mine:\n    def in_hbm(self, view):\n        {body}\n")
    with pytest.raises(UserError, match=f"mine.py:Mine .*{said}") as caught:
        simulate(SCENARIO, TRACE, f"{mine}:Mine", "none")
    assert "\n" not in str(caught.value)


def test_files_and_classes_that_do_not_serve_are_named(tmp_path: Path) -> None:
    mine = file(tmp_path, NEXT_STEP)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_such")
    for text, said in (
        (f"{tmp_path}/none.py:Mine", "does not exist"),
        (f"{mine}:Mine", "has no class Mine: its classes are NextStep, Odd"),
        (mine, "names no class"),
        (f"{broken}:Mine", "raised ModuleNotFoundError"),
    ):
        with pytest.raises(UserError, match=said):
            load_policy(text)
    with pytest.raises(UserError, match="Odd is no migration: it needs a method moves"):
        simulate(SCENARIO, TRACE, "prefer-hbm", f"{mine}:Odd")


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        ("-1", "ahead is -1: give a whole number of steps, 0 or more"),
        ("'two'", "ahead is 'two': give a whole number"),
        ("property(lambda self: 1 / 0)", "raised ZeroDivisionError"),
    ],
)
def test_windows_that_cannot_be_are_refused(tmp_path: Path, ahead: str, said: str) -> None:
    mine = file(tmp_path, f"class Mine:\n    ahead = {ahead}\n    def in_hbm(self, view):\n        return True\n")
    with pytest.raises(UserError, match=f"mine.py:Mine.*{said}"):
        simulate(SCENARIO, TRACE, f"{mine}:Mine", "none")


def test_windows_may_be_longer_than_the_trace(tmp_path: Path) -> None:
    body = "return not any(view.skipped(m)[0] for m in view.ahead(99))"
    mine = file(tmp_path, f"class Mine:\n    ahead = 10**9\n    def in_hbm(self, view):\n        {body}\n")
    assert simulate(SCENARIO, TRACE, f"{mine}:Mine", "none").clairvoyant


def test_the_policies_of_the_docs_run(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "simulate.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"```python\n(# mine\.py\n.*?)```", text, re.DOTALL)
    mine = file(tmp_path, body)
    full = replace(SCENARIO, memories=replace(SCENARIO.memories, hbm_capacity_bytes=460))
    run = simulate(full, TRACE, f"{mine}:ReadSoon", f"{mine}:Recent")
    assert run.clairvoyant and run.traffic.moved_ext_written > 0 and run.traffic.hbm_written > 0


def test_a_file_may_hold_dataclasses_whose_annotations_are_text(tmp_path: Path) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n@dataclass\nclass Mine:\n"
    mine = file(tmp_path, f"{text}    all: bool = True\n\n    def in_hbm(self, view):\n        return self.all\n")
    assert simulate(SCENARIO, TRACE, f"{mine}:Mine", "none").time_s > 0


def test_a_file_that_ends_the_program_is_told(tmp_path: Path) -> None:
    mine = file(tmp_path, "import sys\nsys.exit(0)\n")
    with pytest.raises(UserError, match="ends the program when it is loaded"):
        load_policy(f"{mine}:Mine")


def test_a_file_edited_within_its_second_is_loaded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    for answer in ("1", "2"):
        mine = file(tmp_path, f"class Mine:\n    answer = {answer}\n")
        os.utime(mine, (1, 1))
        assert load_policy(f"{mine}:Mine").answer == int(answer)  # type: ignore[attr-defined]
    assert [path.name for path in tmp_path.iterdir()] == [Path(mine).name], "nothing lies beside a user's file"
