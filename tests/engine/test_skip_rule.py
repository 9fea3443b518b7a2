"""Which tokens a step reads, by weights that are easy to see through."""

import pytest
import torch

from penstock import UserError
from penstock.engine.skip_rule import Selection, Threshold, TopK, TopP, parse_rule

# two KV heads of two query heads each; four cached tokens, and the step's own
WEIGHTS = torch.tensor(
    [
        [[0.4, 0.3, 0.1, 0.1, 0.1], [0.5, 0.1, 0.1, 0.2, 0.1]],
        [[0.1, 0.1, 0.6, 0.1, 0.1], [0.05, 0.0, 0.05, 0.0, 0.9]],
    ]
)


def chosen(text, weights=WEIGHTS):
    return parse_rule(text).chosen(weights).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("rule", "tokens"),
    [
        ("top-k:0", []),
        ("top-k:1", [0, 2]),
        ("top-k:2", [0, 1, 2]),  # the second KV head's other three weigh the same: the oldest, which is 0
        ("top-k:99", [0, 1, 2, 3]),
        ("top-k:25%", [0, 2]),
        ("top-k:26%", [0, 1, 2]),
        ("top-k:100%", [0, 1, 2, 3]),
        ("top-p:0", []),
        ("top-p:0.39", [0, 2]),  # the last head needs no cached token: its own has 0.9
        ("top-p:0.65", [0, 1, 2, 3]),
        ("threshold:0.35", [0, 2]),
        ("threshold:0.3", [0, 1, 2]),
        ("threshold:1", []),
        ("threshold:0", [0, 1, 2, 3]),
    ],
)
def test_what_a_rule_chooses(rule, tokens):
    assert chosen(rule) == tokens


def test_a_share_is_exact():
    """7 % of 100 is 7, though 0.07 · 100 is a little more in floating point."""
    weights = torch.linspace(1, 2, 101).expand(1, 1, -1)
    assert len(chosen("top-k:7%", weights)) == 7


def test_learned_sinks_take_no_part_of_the_share_of_top_p():
    assert chosen("top-p:0.9", WEIGHTS[:1, :1] / 4) == chosen("top-p:0.9", WEIGHTS[:1, :1])


@pytest.mark.parametrize("text", ["top-k:64", "top-k:25%", "top-k:0.5%", "top-p:0.95", "threshold:0.001"])
def test_a_rule_says_how_it_was_written(text):
    assert str(parse_rule(text)) == text


@pytest.mark.parametrize(
    "text", ["", "top", "top-k", "top-k:", "top-k:-1", "top-k:1.5", "top-k:101%", "top-k:nan", "top-p:1.1", "top-p:95%"]
)
def test_what_is_no_rule_is_told_in_one_line(text):
    with pytest.raises(UserError, match=r"is none of top-k:64, .*threshold:0\.001") as refusal:
        parse_rule(text)
    assert "\n" not in str(refusal.value)


def test_sinks_and_recent_tokens_are_read_besides():
    weights = torch.full((1, 1, 11), 0.01)
    weights[..., 5] = 0.9
    read = Selection(Threshold(0.5), sinks=2, recent=3).read(weights, 10)
    assert read.nonzero().flatten().tolist() == [0, 1, 5, 7, 8, 9]


def test_nothing_outside_of_a_window_is_read():
    read = Selection(TopK(tokens=0), sinks=4, recent=16).read(torch.full((1, 1, 8), 1 / 8), 20)
    assert read.nonzero().flatten().tolist() == list(range(13, 20))
    read = Selection(TopK(tokens=0), sinks=14, recent=0).read(torch.full((1, 1, 8), 1 / 8), 20)
    assert read.nonzero().flatten().tolist() == [13]


def test_a_query_that_sees_only_itself_reads_nothing():
    assert not Selection(TopP(0.9)).read(torch.ones((2, 2, 1)), 5).any()
