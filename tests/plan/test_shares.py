from typing import Any

import pytest

from penstock.errors import UserError
from penstock.plan.policy import Shares
from penstock.plan.shares import parse_shares


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ("gpu=20%,cpu=50%,disk=30%", Shares(0.2, 0.5, 0.3)),
        ("disk=60, cpu = 40 %", Shares(cpu=0.4, disk=0.6)),
        ("cpu", Shares(cpu=1.0)),
        ("CPU=100", Shares(cpu=1.0)),
        ("cpu=0%,disk=100%", Shares(disk=1.0)),
        ("gpu=12.5,cpu=87.5", Shares(gpu=0.125, cpu=0.875)),
        ({"cpu": 40, "disk": 60}, Shares(cpu=0.4, disk=0.6)),
        ({"cpu": 0.4, "disk": 0.6}, Shares(cpu=0.4, disk=0.6)),
        ({"cpu": "40%", "disk": "60%"}, Shares(cpu=0.4, disk=0.6)),
        (Shares(cpu=0.3, disk=0.7), Shares(cpu=0.3, disk=0.7)),
    ],
)
def test_shares_as_written(given: Any, shares: Shares) -> None:
    assert parse_shares(given) == shares


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("cpu=40%,disk=50%", "sums to 90 %"),
        ("cpu=40%,ram=60%", "'ram': the tiers are gpu, cpu, disk"),
        ("cpu=40%,cpu=60%", "names cpu twice"),
        ("cpu=-40%,disk=140%", "percentage from 0 to 100"),
        ("cpu=nan", "percentage from 0 to 100"),
        ("cpu=1/0", "percentage from 0 to 100"),
        ("cpu,disk", "sums to 200 %"),
        ("cpu=", "percentage"),
        ("", "'no tier'"),
        ({}, "sums to 0 %"),
        (Shares(), "sums to 0 %"),
        (0.5, "give shares as text"),
    ],
)
def test_mistakes_are_refused_in_one_line(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"--weights .*{said}") as caught:
        parse_shares(given, what="--weights")
    assert "\n" not in str(caught.value)
