"""What a placement takes on each tier, and what of it counts against a budget."""

from dataclasses import replace

from tests.plan.made import MIB, beside_a_gpu, case, shape

from penstock.plan.case import Case
from penstock.plan.policy import Shares
from penstock.plan.types import Asked, Length
from penstock.plan.uses import memory
from penstock.plan.wish import placed

PAGES = sum(page.nbytes for page in shape().pages)


def on_disk(budget: int) -> Case:
    made = case([Length(100, 20)] * 10, asked=Asked(weights=Shares(disk=1.0)))
    return replace(made, ledger=replace(made.ledger, budget={**made.ledger.budget, "disk": budget}))


def test_weights_that_are_read_where_they_lie_take_nothing_from_the_disk_s_budget() -> None:
    asked = on_disk(budget=MIB)
    disk = memory(asked, placed(asked, asked.asked))["disk"]
    assert (disk.weights, disk.in_place, disk.needed, disk.short, disk.free) == (PAGES, PAGES, 0, 0, MIB)


def test_a_rule_s_placement_never_exceeds_what_it_was_counted_against() -> None:
    made = case([Length(100, 20)] * 50)
    use = memory(made, placed(made, Asked()))["cpu"]
    assert use.short == 0 and use.needed + use.free == use.budget
    assert use.weights > 0 and use.kv > 0 and use.buffers > 0


def test_what_attention_beside_a_gpu_takes_of_the_host_is_no_activations() -> None:
    asked = Asked(kv=Shares(cpu=1.0), attention="cpu")
    made = beside_a_gpu([Length(100, 20)] * 50, 200, 2000, asked)
    there = memory(made, placed(made, asked))["cpu"]
    plain = replace(asked, attention=None)
    here = memory(replace(made, asked=plain), placed(made, plain))["cpu"]
    assert there.activations == here.activations == 0 and there.buffers > here.buffers > 0
