"""What flags of ``penstock plan`` cannot be together, told before anything is imported or looked for."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from penstock.asked import check_here
from penstock.bits import Bits
from penstock.errors import UserError
from penstock.plan.checks import check_machine
from penstock.plan.policy import Tier
from penstock.plan.shares import parse_shares
from penstock.plan.types import Asked

DRAWN = (".png", ".svg", ".html")


def check_job(input: str | None, prompt_len: int | None, num_prompts: int | None) -> None:
    """A job is described by its file or by numbers."""
    if input is None:
        return
    for flag, value in (("--prompt-len", prompt_len), ("--num-prompts", num_prompts)):
        if value is not None:
            raise UserError(f"{flag} {value} and -i {input} describe the job in two ways; use one of them")


def check_no_disk(shares: Mapping[str, str | None], disk_memory: str | None) -> None:
    """Without a disk nothing is put there, and it needs no budget. shares: by flag, as given."""
    if disk_memory is not None:
        raise UserError(f"--no-disk and --disk-memory {disk_memory} contradict each other; use one of them")
    for flag, given in shares.items():
        if given is not None and parse_shares(given, flag).disk > 0:
            raise UserError(f"--no-disk and {flag} {given} contradict each other; use one of them")


def check_where(asked: Asked, budgets: Mapping[Tier, int | None], machine: str | None, device: str) -> None:
    """What is asked of a gpu needs one, on this host or on the machine of that name."""
    if machine is None:
        check_here(asked, budgets, device)
        return
    from penstock.machine.presets import machine_of

    there, budgeted = machine_of(machine), [tier for tier, nbytes in budgets.items() if nbytes is not None]
    check_machine(asked, budgeted, there.name, there.memory, there.compute)


def check_outputs(save: str | None, plot: str | None) -> None:
    """What is written last must not cost a search because of its name."""
    for flag, name in (("--save", save), ("--plot", plot)):
        if name is not None and (Path(name).is_dir() or not Path(name).absolute().parent.is_dir()):
            raise UserError(f"{flag} {name} is not a file in a directory that exists; create the directory first")
    if plot is not None and Path(plot).suffix.lower() not in DRAWN:
        raise UserError(f"--plot {plot}: the name must end in {', '.join(DRAWN[:-1])} or {DRAWN[-1]}")


def check_explained(what: str, asked: Asked, bits: Bits, save: str | None, plot: str | None) -> None:
    """A comparison of ways to move layers takes nothing that only a plan heeds."""
    if save is not None or plot is not None:
        flag = "--save" if save is not None else "--plot"
        raise UserError(f"--explain {what} compares and plans nothing: leave {flag} out")
    if bits.free:
        raise UserError(f"--explain {what} compares ways to move weights of given bits: leave auto out")
    for wish in fields(Asked):
        if wish.name != "rows" and getattr(asked, wish.name) != wish.default:
            flag = {"cpu_layers": "--compute-cpu-layers"}.get(wish.name, f"--{wish.name.replace('_', '-')}")
            raise UserError(
                f"--explain {what} compares ways that fix all of placement and cut but --rows: leave {flag} out"
            )
