"""Whatever one peer does, the other one's checks hold when all is quiet (`tests.simulation.hostile`)."""

from __future__ import annotations

import pytest

from tests.simulation.hostile import HOSTILE

QUICK = {
    "taker: publishes what it revoked, at once",
    "maker: silent once it has our commit signature",
    "taker: publishes and then revokes",
    "maker: resumes with other terms",
    "maker: keeps the close for an hour",
}
"""The published attacks on plain designs, and those that money rules are for. The others are slow by their number."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in HOSTILE]
)
def test_the_other_side_is_safe(name: str) -> None:
    assert HOSTILE[name].run().violations == ()


def test_what_is_quick_is_there() -> None:
    assert HOSTILE.keys() >= QUICK
