"""Memory by how the work is cut, in figures that can be told by hand."""

from dataclasses import replace

import pytest
from tests.plan.made import BLOCK, MIB, shape

from penstock.errors import UserError
from penstock.plan.policy import Shares
from penstock.plan.sizes import Cut, Sizes, least_mib, parking_file_bytes
from penstock.plan.types import Asked, Footprint, Job, Ledger

JOB = Job(prompts=100, mean_tokens=64, longest_tokens=96, longest_prompt=64)
LEDGER = Ledger({"cpu": 200 * MIB, "disk": 1 << 40}, {"cpu": 20 * MIB})
CUT = Cut(slots=3, batch=128, rows=10, sweep=512)


def sizes(asked: Asked | None = None, model: Footprint | None = None) -> Sizes:
    return Sizes(model or shape().footprint, JOB, LEDGER, asked or Asked(), "cpu")


def test_a_row_has_a_block_to_grow_into() -> None:
    assert [sizes().row_bytes(tokens) // BLOCK for tokens in (1, 16, 17, 64)] == [2, 2, 3, 5]


def test_what_a_cut_takes_before_kv_and_pages() -> None:
    call, held = 128 * (16 << 10), (512 - 128) * (16 << 10) // 2
    assert sizes().fixed(CUT) == MIB + call + held + 3 * 16 * MIB
    assert sizes().fixed(replace(CUT, slots=2)) == sizes().fixed(CUT) - 16 * MIB
    assert sizes().fixed(replace(CUT, slots=99)) == sizes().fixed(replace(CUT, slots=16))  # there are 16 pages


def test_calls_that_rest_on_disk_leave_one_buffer_in_memory() -> None:
    held = 128 * (16 << 10) // 2
    assert sizes().suspended(CUT) == 3 * held
    on_disk = sizes(Asked(activations=Shares(disk=1.0)))
    assert on_disk.suspended(CUT) == held
    assert on_disk.parked(CUT, "disk") == 4 * parking_file_bytes(held)


def test_files_of_activations_grow_by_doubling() -> None:
    assert [parking_file_bytes(n) for n in (1, 65_536, 65_537, 1 << 20)] == [65_536, 65_536, 131_072, 1 << 20]


def test_a_refusal_names_a_budget_that_is_enough() -> None:
    needed = sizes().needed(CUT)
    enough = least_mib(LEDGER, "cpu", needed) * MIB
    assert enough >= needed + 20 * MIB
    assert least_mib(LEDGER, "disk", 10 * MIB) == 10
    assert f"The least that works is {enough // MIB}MiB." in sizes().refusal(CUT)


def test_rows_are_as_many_as_their_states_leave_room_for() -> None:
    recurrent = replace(shape().footprint, state=MIB)
    room = 50 * MIB
    row = MIB + 5 * BLOCK
    assert sizes(model=recurrent).rows_held(room, 100) == (room - 7 * BLOCK) // row
    assert sizes().rows_held(room, 100) == 100
    with pytest.raises(UserError, match="100 rows keep 100 MiB beside their KV blocks on cpu, where"):
        sizes(Asked(batch_size=10, num_batches=10), recurrent).rows_held(room, 100)


def test_attention_beside_a_gpu_takes_memory_of_the_host_and_no_ring_of_the_gpu() -> None:
    model = replace(shape().footprint, staged_layer=BLOCK, query_bytes=1000, answer_bytes=2000)
    ledger = Ledger({"gpu": 200 * MIB, "cpu": 200 * MIB, "disk": 1 << 40}, {})

    def of(kv: Shares, attention: str) -> Sizes:
        return Sizes(model, JOB, ledger, Asked(kv=kv, attention=attention), "gpu")  # type: ignore[arg-type]

    cpu, disk = Shares(cpu=1.0), Shares(cpu=0.5, disk=0.5)
    plain = of(Shares(gpu=1.0), "gpu").fixed(CUT)
    assert [of(kv, "gpu").fixed(CUT) - plain for kv in (cpu, disk)] == [16 * MIB] * 2
    assert [of(kv, "cpu").fixed(CUT) - plain for kv in (cpu, disk)] == [512 * 5000] * 2  # of all calls
    assert of(disk, "gpu").attending(CUT, "cpu") == of(disk, "cpu").attending(CUT, "disk") == 0
    asked = of(cpu, "cpu").attending(CUT, "cpu")
    assert asked > 512 * 3000
    apart = 2 * 512 * 3000  # a row on both asks twice
    assert of(disk, "cpu").attending(CUT, "cpu") == asked + apart + 16 * MIB  # what comes from disk
