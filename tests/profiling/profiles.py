"""A profile with numbers that are easy to recognise."""

from datetime import UTC, datetime

from penstock.machine.machine import Curve, Link, Machine, Processor
from penstock.profiling.disk import Disk
from penstock.profiling.profile import Host, Profile, versions

HERE = Host.here()


def profile(form: str = "long", host: Host = HERE, mount: str = "/") -> Profile:
    """One that holds for this host, unless told otherwise."""
    processor = Processor(
        products={"float32<bfloat16": Curve(((1.0, 7.1e9), (256.0, 2.4e11))), "float32": Curve(((1.0, 5e9),))},
        attention=Curve(((1.0, 1.6e10), (256.0, 1.1e11))),
        kv_bytes_per_s=9.6e9,
        activation_bytes_per_s=8.2e9,
        dequantise_per_s=1.3e9,
        visit_s=3.1e-4,
        sweep_s=1.2e-3,
        row_s=4e-5,
        logit_s=2e-10,
        expert_s=2.2e-4,
        fresh_bytes_per_s=7.5e8,
    )
    read, write = Link(1.4e9, 2.1e-4, jitter=0.125), Link(8e8, 1e-4)
    machine = Machine(
        host.name,
        {"cpu": 24 << 30, "disk": 100 << 30},
        {"disk→cpu": read, "cpu→disk": write},
        {"cpu": processor},
        0.08,
        0.13,
        {"links": "measured"},
    )
    disks = {mount: Disk(mount, read, write, 5e8, 4e8)}
    when = datetime(2026, 3, 1, 12, tzinfo=UTC)
    return Profile(host, when, form, 48.0, versions(), machine, disks, {"host_copy_bytes_per_s": 9e9})
