"""Policies of a user's own: loaded from a file, called, and held to what exists."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UserError
from penstock.sim import migrations, placements
from penstock.sim.policy import Items, MigrationPolicy, Moves, PlacementPolicy
from penstock.sim.view import View

Answer = TypeVar("Answer")


class _Afresh(SourceFileLoader):
    """Compiles a file at every load: a cache lies beside the user's file, and misses an edit within its second."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def load_policy(text: str) -> object:
    """Make a policy from `FILE.py:CLASS`, a class that needs no arguments and has `in_hbm` or `moves`."""
    file, _, name = text.rpartition(":")
    if not file or not name:
        raise UserError(f"{text} names no class: write FILE.py:CLASS")
    if not Path(file).is_file():
        raise UserError(f"{file} does not exist: write FILE.py:CLASS with the path of a Python file")
    if Path(file).suffix != ".py":
        raise UserError(f"{file} is no Python file: write FILE.py:CLASS")
    loader = _Afresh(f"penstock_user_policy_{Path(file).stem}", file)
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None  # it is, of a loader that is given
    module = sys.modules[spec.name] = module_from_spec(spec)  # where dataclasses look for it
    try:
        _call(lambda: loader.exec_module(module), file)
    except SystemExit:
        raise UserError(
            f"{file} ends the program when it is loaded: keep that under if __name__ == '__main__'"
        ) from None
    made = getattr(module, name, None)
    if not isinstance(made, type):
        own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        classes = ", ".join(value.__name__ for value in own if isinstance(value, type)) or "none"
        raise UserError(f"{file} has no class {name}: its classes are {classes}")
    return _call(made, text)


class _Watched:
    """How far a policy under watch looks: as far as the user's own."""

    policy: object
    name: str

    @property
    def ahead(self) -> int:
        """What the policy asks for."""
        return self._steps("ahead")

    @property
    def back(self) -> int:
        """What the policy asks for."""
        return self._steps("back")

    def _steps(self, what: str) -> int:
        steps = _call(lambda: getattr(self.policy, what, 0), self.name)
        if not isinstance(steps, int | np.integer) or steps < 0:
            raise UserError(f"{self.name}: {what} is {steps!r}: give a whole number of steps, 0 or more")
        return int(steps)


@dataclass(frozen=True)
class UserPlacement(_Watched):
    """A user's placement, named in what it gets wrong."""

    policy: PlacementPolicy
    name: str

    @classmethod
    def around(cls, policy: object, name: str = "") -> tuple[PlacementPolicy, str]:
        """A user's policy under watch, one of Penstock's as it is; with its name."""
        name = name or f"{type(policy).__module__}:{type(policy).__qualname__}"
        if not isinstance(policy, PlacementPolicy):
            raise UserError(f"{name} is no placement: it needs a method in_hbm(self, view) -> bool")
        if type(policy).__module__ == placements.__name__:
            return policy, repr(policy)
        return cls(policy, name), name

    def in_hbm(self, view: View) -> bool:
        """The policy's answer."""
        answer = _call(lambda: self.policy.in_hbm(view), _place(self.name, view))
        if not isinstance(answer, bool | np.bool_):
            raise UserError(f"{_place(self.name, view)}: in_hbm returned {answer!r}: return True or False")
        return bool(answer)


@dataclass(frozen=True)
class UserMigration(_Watched):
    """A user's migration, named in what it gets wrong."""

    policy: MigrationPolicy
    name: str

    @classmethod
    def around(cls, policy: object, name: str = "") -> tuple[MigrationPolicy, str]:
        """A user's policy under watch, one of Penstock's as it is; with its name."""
        name = name or f"{type(policy).__module__}:{type(policy).__qualname__}"
        if not isinstance(policy, MigrationPolicy):
            raise UserError(f"{name} is no migration: it needs a method moves(self, view) -> Moves")
        if type(policy).__module__ == migrations.__name__:
            return policy, repr(policy)
        return cls(policy, name), name

    def moves(self, view: View) -> Moves:
        """The policy's moves, all of items that exist and lie where they are said to lie."""
        place = _place(self.name, view)
        moves = _call(lambda: self.policy.moves(view), place)
        if not isinstance(moves, Moves):
            raise UserError(f"{place}: moves returned {type(moves).__name__}: return penstock.sim.policy.Moves")
        outs, ins, room = (
            _checked(place, kind, items, view)
            for kind, items in (("out", moves.outs), ("in", moves.ins), ("out for room", moves.room))
        )
        leaving = np.concatenate((outs, room))
        _refuse(place, "moves out", leaving, ~view.hbm[leaving[:, 1], leaving[:, 0]], "which is not in HBM")
        _refuse(place, "moves in", ins, view.hbm[ins[:, 1], ins[:, 0]], "which is in HBM already")
        _refuse(place, "moves out", leaving, _repeated(leaving), "twice")
        _refuse(place, "moves in", ins, _repeated(ins), "twice")
        return Moves(outs, ins, room, moves.room_by_token)


def _checked(place: str, kind: str, items: Items, view: View) -> Items:
    """Items as whole numbers [count, 2], each of which exists."""
    array = _array(items)
    if array.size == 0:
        return np.empty((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise UserError(f"{place}: items to move {kind} must be whole numbers [count, 2], token and layer")
    array = array.astype(np.int64)
    token, layer = array.T
    inside = (token >= 0) & (token <= view.step) & (layer >= 0) & (layer < view.scenario.layers)
    exist = inside.copy()
    exist[inside] = view.exist[layer[inside], token[inside]]
    _refuse(place, f"moves {kind}", array, ~exist, "which does not exist")
    return array


def _array(items: object) -> NDArray[Any]:
    try:
        return np.asarray(items)
    except ValueError:  # lists of different lengths
        return np.empty(1, object)


def _refuse(place: str, does: str, items: Items, wrong: NDArray[np.bool_], why: str) -> None:
    if wrong.any():
        token, layer = items[wrong.argmax()]
        raise UserError(f"{place} {does} the item of token {token} at layer {layer}, {why}")


def _repeated(items: Items) -> NDArray[np.bool_]:
    repeated = np.ones(len(items), np.bool_)
    repeated[np.unique(items, axis=0, return_index=True)[1]] = False
    return repeated


def _place(name: str, view: View) -> str:
    return f"{name} at step {view.step}, layer {view.layer}"


def _call(function: Callable[[], Answer], place: str) -> Answer:
    try:
        return function()
    except UserError:
        raise
    except Exception as error:  # the code is the user's: whatever it raises is theirs to mend
        raise UserError(f"{place} raised {type(error).__name__}: {' '.join(str(error).split())}") from error
