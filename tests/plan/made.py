"""A made-up model and machine, small enough to reckon with by hand."""

from dataclasses import replace

from penstock.machine.machine import Curve, Link, Machine, Processor
from penstock.plan.case import Case
from penstock.plan.shape import AttentionShape, ModelShape, PageShape
from penstock.plan.types import Asked, Footprint, Ledger, Length
from penstock.schedule.types import GroupSpec

MIB = 1 << 20
BLOCK = 64 << 10  # bytes of 16 tokens of KV


def shape(layers: int = 8) -> ModelShape:
    """Two pages of 16 MiB a layer (8 Mi weights of 16 bits each), and 512 bytes of KV a token and layer."""
    pages = [PageShape(16 * MIB, 8 * MIB, layer) for layer in range(layers) for _ in range(2)]
    attention = [AttentionShape(BLOCK // 16 // layers, 4096, None, 2 * layer) for layer in range(layers)]
    footprint = Footprint(
        pages=[page.nbytes for page in pages],
        tables=frozenset(),
        core=MIB,
        call_bytes=16 << 10,
        logit_bytes=4096,
        kv_block=BLOCK,
        block_tokens=16,
        call_tokens=256,
        layers=[page.layer for page in pages],
    )
    return ModelShape("made-up", "float32", pages, attention, 4096, 1 << 20, 512, footprint)


def machine(disk_bytes_per_s: float = 1e9) -> Machine:
    cpu = Processor(
        products={"float32": Curve(((1, 10e9), (64, 200e9), (256, 200e9)))},
        attention=Curve.flat(20e9),
        kv_bytes_per_s=10e9,
        activation_bytes_per_s=10e9,
        visit_s=1e-4,
        sweep_s=1e-3,
        row_s=1e-5,
    )
    links = {"disk→cpu": Link(disk_bytes_per_s), "cpu→disk": Link(1e9)}
    return Machine("made-up", {"cpu": 1 << 30, "disk": 1 << 40}, links, {"cpu": cpu})


def case(
    lengths: list[Length], memory_mib: int = 160, disk_bytes_per_s: float = 1e9, asked: Asked | None = None
) -> Case:
    ledger = Ledger({"cpu": memory_mib * MIB, "disk": 1 << 40}, {"cpu": 0})
    return Case(shape(), machine(disk_bytes_per_s), ledger, lengths, asked or Asked(), [GroupSpec(BLOCK)])


def beside_a_gpu(lengths: list[Length], gpu_mib: int, cpu_mib: int, asked: Asked | None = None) -> Case:
    """The same with a gpu that computes as fast as the cpu, 1 GB/s away from it, and no room on the disk."""
    made, host = case(lengths, asked=asked), machine()
    links = {**host.links, "cpu→gpu": Link(1e9), "gpu→cpu": Link(1e9)}
    processors = {**host.processors, "gpu": host.processors["cpu"]}
    both = replace(host, memory={**host.memory, "gpu": 1 << 30}, links=links, processors=processors)
    ledger = Ledger({"gpu": gpu_mib * MIB, "cpu": cpu_mib * MIB, "disk": 0}, {})
    return replace(made, machine=both, ledger=ledger)
