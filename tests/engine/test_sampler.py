import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from penstock.engine.sampler import NOT_FINITE, Draw, sample
from penstock.sampling import Sampling


def draws(count: int, sampling: Sampling, key: str = "r") -> list[Draw]:
    return [Draw(sampling, key, position) for position in range(count)]


def logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def test_greedy_rows_take_the_best_token() -> None:
    given = logits(9, 100).bfloat16()
    assert torch.equal(sample(given, draws(9, Sampling())), given.argmax(-1))
    assert torch.equal(sample(given, draws(9, Sampling(temperature=1.0, top_k=1))), given.argmax(-1))


def test_frequencies_match_probabilities() -> None:
    count, one = 8000, logits(1, 12)
    drawn = sample(one.expand(count, -1), draws(count, Sampling(temperature=1.7)))
    expected = (one[0].double() / 1.7).softmax(-1) * count
    chi_square = ((drawn.bincount(minlength=12) - expected) ** 2 / expected).sum().item()
    assert chi_square < 31.3  # 11 degrees of freedom, p = 0.001; the draws are fixed


def test_a_draw_depends_on_its_own_row_alone() -> None:
    given = logits(40, 500)
    kinds = [Sampling(), Sampling(1.0), Sampling(0.7, top_p=0.9), Sampling(1.3, top_k=40), Sampling(1.0, seed=5)]
    rows = [Draw(kinds[at % 5], f"request {at}", at) for at in range(40)]
    together = sample(given, rows)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample(given[order], [rows[at] for at in order]), together[order])
    assert torch.equal(torch.cat([sample(given[at : at + 1], [rows[at]]) for at in range(40)]), together)


def test_seed_request_and_position_each_change_the_draw() -> None:
    uniforms = {
        Draw(Sampling(seed=seed), key, position).uniform for seed in (0, 1) for key in ("a", "b") for position in (3, 4)
    }
    assert len(uniforms) == 8 and all(0 <= u < 1 for u in uniforms)
    assert Draw(Sampling(), "a", 3).uniform == Draw(Sampling(), "a", 3).uniform


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.8), (0, 0.05), (20, 0.9), (500, 0.999)])
def test_the_support_is_transformers(top_k: int, top_p: float) -> None:
    count, one = 4000, logits(1, 60, seed=3) / 2
    scores = one
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    kept = scores[0].softmax(-1)
    drawn = sample(one.expand(count, -1), draws(count, Sampling(1.0, top_p, top_k))).bincount(minlength=60)
    assert not drawn[kept == 0].any()
    assert drawn[kept > 0.004].all()


def test_top_p_of_a_flat_vocabulary_looks_at_all_of_it() -> None:
    flat = torch.linspace(0, 1e-3, 5000).expand(300, -1)
    drawn = sample(flat, draws(300, Sampling(1.0, top_p=0.9)))
    assert drawn.min() >= 499 and drawn.min() < 1000


def test_extremes() -> None:
    given = logits(4, 50)
    given[:, 10:] = -torch.inf
    assert torch.equal(sample(given, draws(4, Sampling(2e-5))), given.argmax(-1))
    assert (sample(given, draws(4, Sampling(1e6, top_p=0.999))) < 10).all()
    assert sample(given[:0], []).shape == (0,)


@pytest.mark.parametrize(
    "kind", [Sampling(), Sampling(0.8), Sampling(1.0, top_k=5), Sampling(1.0, top_p=0.9), Sampling(1.0, 0.999, 40)]
)
def test_rows_without_a_finite_best_logit_are_told_from_the_others(kind: Sampling) -> None:
    """A row that says minus infinity of some tokens is none of them."""
    given = logits(6, 5000)
    whole = sample(given, draws(6, kind))
    spoilt = given.clone()
    spoilt[1, 7], spoilt[2, 4999], spoilt[3] = torch.nan, torch.inf, -torch.inf
    spoilt[4, (torch.arange(5000) != whole[4])] = -torch.inf
    drawn = sample(spoilt, draws(6, kind))
    assert drawn.tolist() == [int(whole[0]), NOT_FINITE, NOT_FINITE, NOT_FINITE, int(whole[4]), int(whole[5])]
    assert sample(spoilt.bfloat16(), draws(6, kind))[1:4].tolist() == [NOT_FINITE] * 3
