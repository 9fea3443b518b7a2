"""This host as plans and runs see it: its stored profile where that holds, and otherwise measured now, shortly."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.errors import UserError
from penstock.machine.machine import Machine
from penstock.model.pages import Extent
from penstock.plan.policy import Tier
from penstock.profiling.measure import SHORT, Progress, measure_profile, with_disks
from penstock.profiling.profile import Host, Profile, gpu_name, stale_reasons
from penstock.profiling.profile_file import load_profile, save_profile

Event = Callable[[Mapping[str, Any]], None]
Room = Mapping[Tier, int]


def host_machine(extents: Sequence[Extent], offload: Path, on_event: Event, room: Room | None = None) -> Machine:
    """This host, with the disks that ``extents`` are read from and ``offload`` lies on.

    A profile of another machine or of other versions is not used, and that is said. room: bytes of each tier that a
    measurement may take, None: as it likes. Raises UserError where that is too little, and where a disk cannot be
    measured.
    """
    profile, reasons = _stored()
    if reasons:
        on_event({"kind": "note", "text": f"the stored profile is not used: {'; '.join(reasons)}"})
    checkpoint = _checkpoint(extents)
    if profile is None:
        on_event(
            {"kind": "note", "text": "measuring this host, once, for about 15 s (penstock profile measures longer)"}
        )
        form, halves = SHORT, None
        if room is not None:
            form, halves = SHORT.within(room), {tier: nbytes // 2 for tier, nbytes in room.items()}
        profile = measure_profile(extents or None, offload, form, _progress(on_event), halves)
        save_profile(profile)
    elif profile.lacks(checkpoint, offload):
        on_event({"kind": "note", "text": "measuring a disk that was not measured before"})
        try:
            form = SHORT if room is None else SHORT.within(room)
            profile = with_disks(profile, extents or None, offload, form, _progress(on_event))
            save_profile(profile)
        except UserError as refusal:
            on_event({"kind": "note", "text": f"{refusal}; planned as if it were the disk that was measured"})
    return profile.machine_at(checkpoint, offload)


def stored_machine(extents: Sequence[Extent], offload: Path) -> Machine | None:
    """This host as it was measured; None where it was not, or by other versions or on another machine."""
    profile, _ = _stored()
    return None if profile is None else profile.machine_at(_checkpoint(extents), offload)


def _stored() -> tuple[Profile | None, list[str]]:
    """The stored profile if it speaks of this host, and why it does not."""
    profile = load_profile()
    reasons = [] if profile is None else stale_reasons(profile, Host.here(gpu_name()))
    return (None if reasons else profile), reasons


def _checkpoint(extents: Sequence[Extent]) -> Path | None:
    return Path(extents[0].path) if extents else None


def _progress(on_event: Event) -> Progress:
    return lambda what, done_s, total_s: on_event(
        {
            "kind": "load",
            "what": f"measuring {what}" if what else "measured",
            "done": done_s,
            "total": total_s,
            "unit": "s",
        }
    )
