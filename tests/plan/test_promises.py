"""Which cuts closed forms put first."""

from dataclasses import replace

from tests.plan.made import beside_a_gpu, case

from penstock.plan.case import Case
from penstock.plan.policy import Shares
from penstock.plan.promises import Promises, is_shared
from penstock.plan.steady import Steady
from penstock.plan.types import Length

BESIDE = beside_a_gpu([Length(100, 100)] * 200, gpu_mib=100, cpu_mib=1024)


def promises(made: Case) -> Promises:
    return Promises(made, Steady(made))


def test_places_are_each_tier_and_what_is_shared_between_them_the_best_first() -> None:
    ours = promises(BESIDE)
    places = ours.places()
    assert {place.asked.kv if place.asked else "shared" for place in places} == {None, Shares(cpu=1.0), "shared"}
    assert all(is_shared(one.kv) for place in places if place.asked is None for one in place.estimates)
    best = [ours.worth(place.estimates[0]) for place in places]
    assert best == sorted(best, reverse=True)


def test_a_place_leads_with_the_smallest_sweep_that_promises_as_much_as_its_best() -> None:
    ours = promises(case([Length(100, 20)] * 60))
    place = ours.places()[0]
    first, best, *others = ours.leading(place)
    assert first.cut.rows == best.cut.rows and first.cut.sweep <= best.cut.sweep
    assert ours.worth(first) >= 0.99 * ours.worth(best)
    assert ours.worth(best) == max(map(ours.worth, place.estimates))
    assert len({one.cut.rows for one in [best, *others]}) == 1 + len(others), "one cut of every number of rows"


def test_nothing_is_ruled_out_by_its_speed_where_short_sweeps_are_wanted() -> None:
    made = case([Length(100, 20)] * 60)
    estimate = promises(made).places()[0].estimates[0]
    assert promises(made).less(estimate, 2 * estimate.tok_s)
    assert not promises(replace(made, latency=True)).less(estimate, 2 * estimate.tok_s)
