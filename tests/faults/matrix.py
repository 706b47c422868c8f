"""What strikes whom: every service of both nodes, as it is named in their health, and every outside world."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

import httpx2
import trio
from attrs import Factory, define, frozen

from node.regtest.plans import Plan
from node.regtest.processes import Failed, Node
from tests.faults.business import Business, Struck
from tests.faults.proxies import Trouble

HOUR = 2.0
WELL_WITHIN = 30.0
"""Seconds after a fault in which every service is healthy again, on a machine that is busy."""
API = "api"


@frozen
class Options:
    """How long each takes."""

    answers_within: float = 10.0
    """Seconds in which each request must be answered; those to a web server that is killed wait for its next life."""
    lasts: float = 1.5
    """Seconds that a fault lasts which does not end by itself."""
    delay: float = 0.02
    """Seconds by which each step of a slow service comes late."""
    patience: float = 0.0
    """The longest that a service may have before it counts as stuck; 0: as in production."""
    together: int = 3
    """Services of one node that are struck at once."""


@define(eq=False)
class Matrix:
    """Faults in one world, one group after the other, while business goes on."""

    business: Business
    options: Options = Options()
    struck: list[str] = Factory(list)
    """What was done, in words."""
    told: Callable[[str], None] = lambda _: None

    async def names(self, node: Node) -> list[str]:
        """The services, as the node's health has them."""
        return [service["name"] for service in (await node.call("GET", "/health"))["services"]]

    async def kill(self, error: str, only: Collection[str] = ()) -> None:
        """An error raised inside each service's life: `world`, one of the foreseen ones, or `bug`."""
        for group in await self._groups(only):
            async with self._struck(f"{error} error in", group):
                for node, name in group:
                    await self._strike(node, "kill", service=name, error=error)

    async def slow(self, only: Collection[str] = ()) -> None:
        for group in await self._groups(only):
            async with self._struck("slow", group):
                for node, name in group:
                    await self._strike(node, "slow", service=name, delay=self.options.delay)
                await trio.sleep(self.options.lasts)
                for node, name in group:
                    await self._strike(node, "mend", service=name)

    async def hang(self, only: Collection[str] = ()) -> None:
        """Nothing comes back to a life. One that has a patience ends by itself; others the user restarts."""
        for group in await self._groups(only):
            async with self._struck("hung", group):
                for node, name in group:
                    await self._strike(node, "hang", service=name)
                await trio.sleep(self.options.lasts)
                for node, name in group:
                    if name != API:
                        await node.call("POST", f"/services/{name}/restart")

    async def trouble(self, troubles: Sequence[Trouble], only: Collection[str] = ()) -> None:
        """Of the ways to the outside worlds."""
        for name, proxy in self.business.proxies.items():
            for trouble in troubles if not only or name in only else ():
                self._goes_on(f"{trouble} {name}")
                with proxy.troubled(trouble):
                    await trio.sleep(self.options.lasts)
                await self._well(f"{trouble} {name}")

    # --- how ----------------------------------------------------------------------------------------------------------

    async def _groups(self, only: Collection[str]) -> list[list[tuple[Node, str]]]:
        """Some services of each node, both nodes' at once."""
        size = self.options.together
        columns = []
        for node in self.business.nodes:
            names = [name for name in await self.names(node) if not only or name in only]
            columns.append([[(node, name) for name in names[at : at + size]] for at in range(0, len(names), size)])
        longest = max(map(len, columns))
        return [[each for column in columns for each in (column[n] if n < len(column) else [])] for n in range(longest)]

    def _struck(self, how: str, group: Sequence[tuple[Node, str]]) -> _Struck:
        return _Struck(self, f"{how} " + ", ".join(f"{node.name.partition('-')[0]}.{name}" for node, name in group))

    async def _strike(self, node: Node, do: str, **said: object) -> None:
        assert isinstance(self.business.world, Struck)
        await self.business.world.strike(node, do, **said)

    def _goes_on(self, doing: str) -> None:
        self.struck.append(doing)
        self.told(doing)
        for asking in self.business.asking.values():
            asking.doing = doing
            asking.served_anew = f".{API}" in doing

    async def _well(self, doing: str) -> None:
        await self.business.well(WELL_WITHIN, doing)


@frozen
class _Struck:
    matrix: Matrix
    doing: str

    async def __aenter__(self) -> None:
        self.matrix._goes_on(self.doing)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.matrix._well(self.doing)


Strike = Callable[[Matrix], Awaitable[None]]


async def run(
    folder: Path, seed: int, options: Options, strike: Strike, told: Callable[[str], None] = lambda _: None
) -> Matrix:
    """A world, two nodes at their business, what `strike` does to them, and the verdict. Raises `Failed`."""
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:
        world = Struck(folder, HOUR, http, patience=options.patience)
        async with world.world() as process:
            with trio.fail_after(60):
                await world.world_is_up(process)
            business = Business(Plan(seed, (), together=True), world)
            matrix = Matrix(business, options, told=told)
            try:
                async with business.open(options.answers_within):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(business.trade)
                        await strike(matrix)
                        business.rest()
                    await business.well(WELL_WITHIN, "all")
                    await business.came_out_right()
            except* trio.TooSlowError:
                raise Failed(f"{business.doing} did not come within its time; struck: {matrix.struck[-3:]}") from None
            return matrix
