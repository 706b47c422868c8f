"""What strikes whom: every service of both nodes, as it is named in their health, and every outside world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import httpx2
import trio
from attrs import Factory, define, frozen

from node.regtest.plans import Plan
from node.regtest.processes import Failed, Node
from node.regtest.story import answer, comes_true
from tests.faults import disk
from tests.faults.business import Business, Struck
from tests.faults.proxies import Trouble

HOUR = 2.0
WELL_WITHIN = 30.0
"""Seconds after a fault in which every service is healthy again, on a machine that is busy."""
API = "api"
TRADERS = 2
"""Positions at once, so that something is under way whenever a fault strikes."""


@frozen
class Options:
    """How long each takes."""

    answers_within: float = 10.0
    """Seconds in which each request must be answered; those to a web server that is killed wait for its next life."""
    lasts: float = 1.5
    """Seconds that a fault lasts which does not end by itself."""
    delay: float = 0.02
    """Seconds by which each step of a slow service comes late."""
    patience: float | None = 1.5
    """What the supervisor has left with a service that hangs; None: as long as in production."""
    stuck_within: float = 10.0
    """Seconds after that until it is noticed."""
    together: int = 3
    """Services of one node that are struck at once."""


Group = dict[Node, list[str]]
"""Names of services, by node."""


def _each(group: Group) -> list[tuple[Node, str]]:
    return [(node, name) for node, names in group.items() for name in names]


@define(eq=False)
class Matrix:
    """Faults in one world, one group after the other, while business goes on."""

    business: Business
    options: Options = Options()
    struck: list[str] = Factory(list)
    """What was done, in words."""
    bugs: Counter[tuple[str, str]] = Factory(Counter)
    """That were injected, by the names of node and service."""
    told: Callable[[str], None] = lambda _: None

    async def names(self, node: Node) -> list[str]:
        """The services, as the node's health has them."""
        return [service["name"] for service in (await answer(node, "/health"))["services"]]

    async def kill(self, error: str, only: Collection[str] = ()) -> None:
        """An error raised inside each service's life: `world`, one of the foreseen ones, or `bug`."""
        counter = "bugs" if error == "bug" else "failures"
        for group in await self._groups(only):
            async with self._struck(f"{error} error in", group):
                before = await self._counted(counter)
                for node, names in group.items():
                    await self._strike(node, "kill", services=names, error=error)
                    self.bugs.update({(node.name, name): error == "bug" for name in names})
                each = Counter({(node.name, name): 1 for node, name in _each(group)})
                await self._seen(counter, before + each, f"became of the {error} errors", WELL_WITHIN)
                await self._well("the kill")

    async def no_other_bugs(self) -> None:
        """None but those that were injected."""
        counted = +await self._counted("bugs")
        if counted != +self.bugs:
            raise Failed(f"bugs counted: {dict(counted - self.bugs)} more, {dict(self.bugs - counted)} less")

    async def _counted(self, what: str) -> Counter[tuple[str, str]]:
        return Counter(
            {
                (node.name, service["name"]): service[what]
                for node in self.business.nodes
                for service in (await answer(node, "/health"))["services"]
            }
        )

    async def slow(self, only: Collection[str] = ()) -> None:
        for group in await self._groups(only):
            async with self._struck("slow", group):
                for node, names in group.items():
                    await self._strike(node, "slow", services=names, delay=self.options.delay)
                await trio.sleep(self.options.lasts)
                for node, names in group.items():
                    await self._strike(node, "mend", services=names)

    async def hang(self, only: Collection[str] = ()) -> None:
        """Nothing comes back to a life. Those that have a patience end by themselves, others the user restarts."""
        patient = {node: set((await self._strike(node, "who"))["patient"]) for node in self.business.nodes}
        for group in await self._groups(only):
            hung = {
                node: [name for name in names if name != API or name in patient[node]] for node, names in group.items()
            }
            async with self._struck("hung", hung):
                before = await self._counted("failures")
                for node, names in hung.items():
                    await self._strike(node, "hang", services=names, patience=self.options.patience)
                await trio.sleep(self.options.lasts)
                for node, name in _each(hung):
                    if name not in patient[node]:
                        await comes_true(node, f"/services/{name}/restart", lambda _: True, method="POST")
                noticed = Counter({(node.name, name): 1 for node, name in _each(hung) if name in patient[node]})
                within = (self.options.patience or 3600.0) + self.options.stuck_within
                await self._seen("failures", before + noticed, "found those to be stuck", within)

    async def _seen(self, what: str, wanted: Counter[tuple[str, str]], became: str, within: float) -> None:
        """All these were counted."""
        with trio.move_on_after(within):
            while True:
                missing = wanted - await self._counted(what)
                if not missing:
                    return
                await trio.sleep(0.2)
        raise Failed(f"nothing {became} in {within} s: {sorted(missing)}")

    async def trouble(self, troubles: Sequence[Trouble], only: Collection[str] = ()) -> None:
        """Of the ways to the outside worlds."""
        for name, proxy in self.business.proxies.items():
            for trouble in troubles if not only or name in only else ():
                await self._goes_on(f"{trouble} {name}")
                with proxy.troubled(trouble):
                    await trio.sleep(self.options.lasts)
                await self._well(f"{trouble} {name}")

    async def full_disk(self) -> None:
        """Of each node in turn: what it cannot put on record it refuses, and it goes on when there is space."""
        for node in self.business.nodes:
            doing = f"full disk of the {node.name.partition('-')[0]}"
            await self._goes_on(doing)
            refused: Counter[str] = Counter()
            with disk.full(node), trio.move_on_after(self.options.lasts):
                while True:
                    refused[await self.business.order()] += 1
                    await trio.sleep(0.1)
            self.told(f"{doing}: orders were answered with {dict(refused)}")
            if refused["202"] and node is self.business.taker:
                raise Failed(f"{doing}: orders were taken that are on no record: {dict(refused)}")
            await self._well(doing)

    # --- how ----------------------------------------------------------------------------------------------------------

    async def _groups(self, only: Collection[str]) -> list[Group]:
        """Some services of each node, both nodes' at once."""
        size, groups = self.options.together, list[Group]()
        for node in self.business.nodes:
            names = [name for name in await self.names(node) if not only or name in only]
            for n, at in enumerate(range(0, len(names), size)):
                if n == len(groups):
                    groups.append({})
                groups[n][node] = names[at : at + size]
        return groups

    def _struck(self, how: str, group: Group) -> _Struck:
        names = ", ".join(f"{node.name.partition('-')[0]}.{name}" for node, name in _each(group))
        return _Struck(self, f"{how} {names}")

    async def _strike(self, node: Node, do: str, **said: object) -> dict[str, Any]:
        assert isinstance(self.business.world, Struck)
        return await self.business.world.strike(node, do, **said)

    async def _goes_on(self, doing: str) -> None:
        self.struck.append(doing)
        self.told(doing)
        for asking in self.business.asking.values():
            asking.doing = doing
            asking.served_anew = f".{API}" in doing
        for node in self.business.nodes:
            await self._strike(node, "calm")

    async def _well(self, doing: str) -> None:
        await self.business.well(WELL_WITHIN, doing)


@frozen
class _Struck:
    matrix: Matrix
    doing: str

    async def __aenter__(self) -> None:
        await self.matrix._goes_on(self.doing)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.matrix._well(self.doing)


Strike = Callable[[Matrix], Awaitable[None]]


async def run(
    folder: Path, seed: int, options: Options, strike: Strike, told: Callable[[str], None] = lambda _: None
) -> Matrix:
    """A world, two nodes at their business, what `strike` does to them, and the verdict. Raises `Failed`."""
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:
        world = Struck(folder, HOUR, http)
        async with world.world() as process:
            with trio.fail_after(60):
                await world.world_is_up(process)
            business = Business(Plan(seed, (), together=True), world)
            matrix = Matrix(business, options, told=told)
            try:
                async with business.open(options.answers_within):
                    async with trio.open_nursery() as nursery:
                        for _ in range(TRADERS):
                            nursery.start_soon(business.trade)
                        await strike(matrix)
                        business.rest()
                    await business.well(WELL_WITHIN, "all")
                    await matrix.no_other_bugs()
                    await business.came_out_right()
            except* trio.TooSlowError:
                raise Failed(f"{business.doing} did not come within its time; struck: {matrix.struck[-3:]}") from None
            return matrix
