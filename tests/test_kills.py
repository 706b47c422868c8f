"""Makers and takers as processes of their own, killed at random moments: positions and coins come out right.

`scripts/chaos --kills N --seed S` does the same more often; each story's seed is told when it fails.
"""

from collections import Counter
from pathlib import Path

import pytest

from node.regtest.chaos import tell_all
from node.regtest.plans import SCENES, Plan, plans_for

SEED = 18
KILLS = 20


@pytest.mark.slow
async def test_twenty_kills(tmp_path: Path) -> None:
    """SIGKILL of maker, taker or both at any moment of a setup, rollover, close or settlement, and restart: everything
    ended alike, was paid as due, and nothing that was on record is missing."""
    stories = await tell_all(tmp_path, plans_for(KILLS, SEED))
    assert not [story.failure for story in stories if story.failure]
    outcomes = sum((story.outcomes for story in stories), Counter[str]())
    assert sum(count for outcome, count in outcomes.items() if not outcome.startswith("nobody killed")) == KILLS


def test_a_seed_is_a_plan() -> None:
    assert Plan.drawn(3) == Plan.drawn(3)
    assert Plan.drawn(3) != Plan.drawn(4)


@pytest.mark.parametrize("kills", [1, len(SCENES), 2 * len(SCENES) + 1])
def test_as_many_kills_as_asked_for(kills: int) -> None:
    plans = plans_for(kills, SEED)
    assert sum(len(plan.kills) for plan in plans) == kills
    assert [plan.seed for plan in plans] == list(range(SEED, SEED + len(plans)))


def test_all_scenes_moments_and_nodes_are_drawn() -> None:
    """Early and late in each scene; either node, and both at once."""
    kills = [kill for plan in plans_for(2_000, SEED) for kill in plan.kills]
    every = {(scene, victim, half) for scene in SCENES for victim in ("maker", "taker", "both") for half in range(2)}
    assert {(kill.scene, kill.victim, int(kill.moment * 2)) for kill in kills} == every
    assert {kill.again is None for kill in kills} == {True, False}
