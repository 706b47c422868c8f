"""Makers and takers as processes of their own, killed at random moments: positions and coins come out right.

`scripts/chaos --kills N --seed S` does the same more often; each story's seed is told when it fails.
"""

from collections import Counter
from pathlib import Path

import pytest

from node.regtest.chaos import KILLS_PER_STORY, Plan, plans_for, tell_all

SEED = 18
KILLS = 20


@pytest.mark.slow
async def test_twenty_kills(tmp_path: Path) -> None:
    """SIGKILL of maker or taker at any moment of a setup or settlement and restart: all ended, all paid, all there."""
    stories = await tell_all(tmp_path, plans_for(KILLS, SEED))
    assert not [story.failure for story in stories if story.failure]
    outcomes = sum((story.outcomes for story in stories), Counter[str]())
    assert sum(count for outcome, count in outcomes.items() if not outcome.startswith("nobody killed")) == KILLS


def test_a_seed_is_a_plan() -> None:
    assert Plan.drawn(3) == Plan.drawn(3)
    assert Plan.drawn(3) != Plan.drawn(4)


@pytest.mark.parametrize("kills", [1, KILLS_PER_STORY, 2 * KILLS_PER_STORY + 1])
def test_as_many_kills_as_asked_for(kills: int) -> None:
    plans = plans_for(kills, SEED)
    assert sum(plan.kills for plan in plans) == kills
    assert [plan.seed for plan in plans] == list(range(SEED, SEED + len(plans)))


def test_all_moments_and_both_roles_are_drawn() -> None:
    """Setups and settlements, early and late, of either node."""
    plans = plans_for(500, SEED)
    everywhere = {(victim, quarter) for victim in ("maker", "taker") for quarter in range(4)}
    for kills in ([plan.setups for plan in plans], [plan.settlements for plan in plans]):
        assert {(kill.victim, int(kill.moment * 4)) for drawn in kills for kill in drawn} == everywhere
