"""A user's own policies: found in a file, run as they are, and told what they got wrong."""

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
    ],
)
def test_moves_of_what_is_not_there_are_refused(policy: Moving, said: str) -> None:
    with pytest.raises(UserError, match=f"Moving at step 4, layer 0.*{said}"):
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
        ("view.hbm[0, 0] = False", "raised ValueError: assignment destination is read-only"),
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
