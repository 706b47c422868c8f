"""One run from its seed; the matrix of all single faults; random runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio
import trio.testing
from attrs import field, frozen

import node.taker
from tests.simulation.faults import Fault, Faults, Step
from tests.simulation.scenarios import Scenario, Story
from tests.simulation.world import HOUR, World, copied_chain, quiet_logs

LIMIT = 90 * HOUR
"""Seconds after which a run that is left alone must have come to rest: a contract's day, and the refund's lock."""


@frozen
class Outcome:
    """What came of a run."""

    scenario: str
    seed: int
    violations: tuple[str, ...]
    summary: str
    """How positions ended, for counting."""
    trace: tuple[Step, ...] = field(repr=False)
    struck: tuple[tuple[Step, Fault], ...]
    digest: str
    """Of all that is on the nodes' disks: the same for the same seed."""
    logs: list[dict[str, Any]] = field(repr=False)


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """trio's order of tasks follows from the seed, too."""
    trios: Any = trio._core._run
    before = trios._ALLOW_DETERMINISTIC_SCHEDULING
    trios._ALLOW_DETERMINISTIC_SCHEDULING = True
    trios._r.seed(seed)
    try:
        yield
    finally:
        trios._ALLOW_DETERMINISTIC_SCHEDULING = before


@contextmanager
def coarse() -> Iterator[None]:
    """Takers accept payouts in coarse steps: contracts are small, and runs quick."""
    taker: Any = node.taker
    before = taker.TOLERANCE_NEAR, taker.TOLERANCE_FAR
    taker.TOLERANCE_NEAR, taker.TOLERANCE_FAR = "0.05", "0.1"
    try:
        yield
    finally:
        taker.TOLERANCE_NEAR, taker.TOLERANCE_FAR = before


def run(scenario: Scenario, seed: int = 0, faults: Faults | None = None) -> Outcome:
    """Play a scenario, leave everybody alone until it is quiet, and judge."""
    from tests.simulation.checks import judge

    faults = faults or Faults()
    logs: list[dict[str, Any]] = []
    outcome: list[Outcome] = []

    async def main() -> None:
        started = trio.current_time()

        def wall() -> float:
            from tests.simulation.world import EPOCH

            return EPOCH + trio.current_time() - started

        with copied_chain(wall) as chain:
            async with trio.open_nursery() as nursery:
                world = World(seed, chain, nursery, faults, started)
                story = Story(world)
                nursery.start_soon(world.mine_on_schedule)
                faults.open = False
                world.add("maker")
                world.add("taker", "maker")
                prepared = await scenario.prepare(story)
                faults.open = True
                await scenario.play(story, prepared)
                faults.end()
                await rest(world)
                violations, summary = judge(story)
                world.over = True
                outcome.append(
                    Outcome(
                        scenario.name,
                        seed,
                        (*violations, *world.bugs),
                        summary,
                        tuple(faults.trace),
                        tuple(faults.struck),
                        digest(world),
                        logs,
                    )
                )
                nursery.cancel_scope.cancel()

    with quiet_logs(logs), coarse(), repeatable(seed):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return outcome[0]


async def rest(world: World) -> None:
    """Until every position has ended for all, and what ended it was seen by the wallets; or until it is too late."""
    deadline = trio.current_time() + LIMIT

    def quiet() -> bool:
        players = world.players.values()
        return all(player.up and all(each.ended for each in player.positions()) for player in players)

    while not quiet() and trio.current_time() < deadline:
        await trio.sleep(HOUR / 6)
    for _ in range(2):
        await trio.sleep(HOUR)
        world.mine()


def digest(world: World) -> str:
    found = hashlib.sha256()
    for name, player in sorted(world.players.items()):
        found.update(name.encode())
        for event in player.platters.read(0, 10**9):
            found.update(repr((event.stream, event.name, event.data, event.recorded_at)).encode())
    return found.hexdigest()[:16]
