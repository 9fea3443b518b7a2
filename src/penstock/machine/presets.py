"""Machines that come with Penstock, by name: files of datasheet values and published measurements, with sources."""

import os
from pathlib import Path

from penstock.errors import UserError
from penstock.machine.machine import Machine
from penstock.machine.machine_file import load_machine

PRESETS: tuple[str, ...] = (
    "t4-flexgen",
    "rtx4090",
    "a100-80",
    "h100",
    "h200",
    "gh200",
    "m-class",
    "skylake-2core",
)


def preset(name: str) -> Machine:
    """A machine that comes with Penstock. Raises UserError with all names where there is none of this name."""
    if name not in PRESETS:
        raise UserError(f"there is no machine preset {name!r}: presets are {', '.join(PRESETS)}")
    return load_machine(Path(__file__).with_name("preset_files") / f"{name}.toml")


def machine_of(given: str) -> Machine:
    """The machine that a person named: a preset's name, or else the path of a machine file.

    Raises UserError where it is neither, or where the file is wrong.
    """
    if given in PRESETS:
        return preset(given)
    if not os.path.exists(given):
        raise UserError(
            f"machine {given!r} is neither a file nor a preset: presets are {', '.join(PRESETS)}; "
            "docs/machines.md says how to write a file"
        )
    return load_machine(Path(given))
