"""One run from its seed; the matrix of all single faults; random runs."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import trio
import trio.testing
from attrs import field, frozen

import node.oracle.client
import node.oracle.contradictions
import node.quoting
import node.taker
import protocols.contract.dlc
from tests.simulation.checks import Found, gather, judge, summary
from tests.simulation.faults import Fault, Faults, Step
from tests.simulation.scenarios import LIQUIDATING, Scenario, Story
from tests.simulation.world import EPOCH, HOUR, World, copied_chain, quiet_logs

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
    found: Found | None = field(repr=False)
    """What was judged; None once it is handed on to another process."""
    logs: tuple[Mapping[str, Any], ...] = field(repr=False)
    """What the nodes logged: each with the time (hours of the calendar) and the node."""


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


PURE: list[tuple[Any, str]] = [
    (node.oracle.client, "parse_announcement"),
    (node.oracle.client, "parse_attestation"),
    (protocols.contract.dlc, "sign_with_nonce"),
    (protocols.contract.dlc, "signature_point"),
]
"""Functions that are asked the same in every run, since the oracle's events are the same ones."""
_REMEMBERED = {name: lru_cache(maxsize=1 << 16)(getattr(module, name)) for module, name in PURE}


@contextmanager
def quick() -> Iterator[None]:
    """What makes runs short and takes nothing from them: small contracts, for takers accept payouts in coarse steps;
    an oracle that is asked again once; offers priced anew less often; pure functions that remember their results."""
    changes: list[tuple[Any, str, Any]] = [
        (node.taker, "TOLERANCE_NEAR", "0.05"),
        (node.taker, "TOLERANCE_FAR", "0.1"),
        (node.oracle.contradictions, "AGAIN_AFTER", (600.0,)),
        (node.quoting, "LOOK_EVERY", 15.0),
        *((module, name, _REMEMBERED[name]) for module, name in PURE),
    ]
    with ExitStack() as stack:
        for module, name, value in changes:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield


def run(scenario: Scenario, seed: int = 0, faults: Faults | None = None) -> Outcome:
    """Play a scenario, and judge."""
    faults = faults or Faults()

    async def tell(story: Story) -> None:
        world = story.world
        faults.open = False
        world.add("maker", spend=scenario.spend)
        world.add("taker", "maker", spend=scenario.spend, roll=scenario.roll)
        prepared = await scenario.prepare(story)
        faults.open = True
        await scenario.play(story, prepared)
        if scenario.soon:
            faults.end()
            await trio.sleep(2 * HOUR)
            story.world.set_price(LIQUIDATING)

    return play(scenario.name, seed, tell, faults)


def play(name: str, seed: int, tell: Callable[[Story], Awaitable[None]], faults: Faults) -> Outcome:
    """Let users live a story, leave everybody alone until it is quiet, and judge."""
    logs: list[dict[str, Any]] = []
    outcome: list[Outcome] = []

    async def main() -> None:
        started = trio.current_time()

        def wall() -> float:
            return EPOCH + trio.current_time() - started

        with copied_chain(wall) as chain:
            async with trio.open_nursery() as nursery:
                world = World(seed, chain, nursery, faults, started)
                nursery.start_soon(world.mine_on_schedule)
                story = Story(world)
                await tell(story)
                faults.end()
                await rest(world)
                found = gather(story)
                world.over = True
                violations = *judge(found), *bugs(world)
                trace, struck = tuple(faults.trace), tuple(faults.struck)
                outcome.append(
                    Outcome(name, seed, violations, summary(found), trace, struck, digest(world), found, tuple(logs))
                )
                nursery.cancel_scope.cancel()

    with quiet_logs(logs), quick(), repeatable(seed):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return outcome[0]


async def rest(world: World) -> None:
    """Until every position has ended for all, and what ended it was seen by the wallets; or until it is too late."""
    deadline = trio.current_time() + LIMIT

    def quiet() -> bool:
        players = [player for name, player in world.players.items() if name not in world.faults.deceits]
        return all(player.up and all(each.ended for each in player.positions()) for player in players)

    while not quiet() and trio.current_time() < deadline:  # noqa: ASYNC110  many nodes are looked at
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


def bugs(world: World) -> list[str]:
    """Exceptions that nobody expected."""
    found = list(world.bugs)
    for player in world.players.values():
        endpoint = player.life.node.core.endpoint if player.life is not None else None
        if endpoint is not None and endpoint.health.up:
            with endpoint.lent() as running:
                found += [f"{player.name}: {running.crashes} handlers or connections crashed"] * bool(running.crashes)
    return found
