"""A world, a maker and a taker as processes, for tests that are not asynchronous themselves.

Playwright's synchronous calls hold the main thread, so what trio runs, it runs in a thread of its own.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import trio
from attrs import Factory, define, field

from node.regtest.processes import Failed, Node, Processes, healthy

T = TypeVar("T")

HOUR = 4.0
"""Seconds: a position may be rolled over after one or two of them, and expires after a minute and a half."""
UP_WITHIN = 60.0
PRICE = "50000"
"""USD, of a bitcoin; it stays there, so that a limit that a page suggests is good when it is pressed."""
COINS = 100_000_000
PASSWORD = "correct horse battery"


@define(eq=False)
class Stage:
    """The nodes, and a way to their loop."""

    processes: Processes
    maker: Node
    taker: Node
    _token: trio.lowlevel.TrioToken = field(repr=False)
    _over: trio.Event = Factory(trio.Event)

    def run(self, call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """What an asynchronous function returns that runs in the nodes' loop; TooSlowError after a minute."""

        async def bounded() -> T:
            with trio.fail_after(UP_WITHIN):
                return await call(*arguments)

        return trio.from_thread.run(bounded, trio_token=self._token)

    def ask(self, node: Node, method: str, path: str, body: object = None) -> Any:
        """A node's API, as a script would use it."""
        return self.run(node.call, method, path, body)

    def world(self, path: str, body: object = None) -> Any:
        """The world obeys, or answers."""
        return self.run(self.processes.control, path, body)

    def until_healthy(self, node: Node) -> None:
        self.run(healthy, node)

    def fund(self, node: Node, amount: int = COINS) -> None:
        """Coins of the world for a wallet, confirmed."""
        address = self.ask(node, "POST", "/wallet/addresses")["address"]
        self.world("/fund", {"address": address, "amount_sat": amount})
        self.world("/mine", {"blocks": 1})

    def placed(self, side: str, quantity: int, leverage: int) -> str:
        """The id of an order that was placed without the page."""

        async def ordered() -> str:
            found: list[str] = []
            limit = {"long": "100000", "short": "20000"}[side]
            order = {"symbol": "BTCUSD", "side": side, "limit": limit, "quantity": quantity, "leverage": leverage}

            async def taken() -> bool:  # an offer that follows the market may just be replaced
                answer = await self.taker.answer("POST", "/orders", order)
                if answer.status_code not in (202, 404, 409):
                    raise Failed(f"the order was answered with {answer.status_code} {answer.text}")
                found.extend([answer.json()["order_id"]] if answer.status_code == 202 else [])
                return bool(found)

            await self.taker.until(taken)
            return found[0]

        return self.run(ordered)

    def opened(self, side: str = "long", leverage: int = 2) -> str:
        """The id of a position, once it is open."""
        order = self.placed(side, 1000, leverage)
        self.reaches(self.taker, order, "opening", "open")
        self.world("/mine", {"blocks": 1})
        self.reaches(self.taker, order, "open")
        return order

    def reaches(self, node: Node, order: str, *states: str) -> dict[str, Any]:
        """A position once it is in one of these states."""
        view: dict[str, Any] = {}

        async def there() -> bool:
            view.update(await node.call("GET", f"/positions/{order}"))
            return view["state"] in states

        self.run(node.until, there)
        return view


@contextmanager
def running(folder: Path) -> Iterator[Stage]:
    """Both nodes up and funded, the maker's offers for both sides on record and the taker's password set."""
    ready: list[Stage] = []
    failed: list[BaseException] = []
    up = threading.Event()

    def run() -> None:
        try:
            trio.run(_live, folder, ready, up)
        except BaseException as error:  # noqa: BLE001  the other thread raises it
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run, name="nodes")
    thread.start()
    try:
        up.wait()
        if failed:
            raise failed[0]
        yield ready[0]
    finally:
        if ready and not failed:
            trio.from_thread.run_sync(ready[0]._over.set, trio_token=ready[0]._token)
        thread.join()
    if failed:
        raise failed[0]


async def _live(folder: Path, ready: list[Stage], up: threading.Event) -> None:
    async with httpx2.AsyncClient(timeout=15, trust_env=False) as http:
        processes = Processes(folder, HOUR, http)
        async with processes.world() as world:
            await processes.world_is_up(world)
            await processes.control("/price", {"price": PRICE})
            # both at ports that they keep, to be found again after a restart
            at = [f"127.0.0.1:{free_port()}" for _ in range(2)]
            async with processes.maker("maker", "--listen", at[0]) as maker:
                await healthy(maker)
                address = (await maker.call("GET", "/maker"))["address"]
                async with processes.taker(address, "taker", "--api", at[1]) as taker:
                    await healthy(taker)
                    stage = Stage(processes, maker, taker, trio.lowlevel.current_trio_token())
                    await _prepare(stage)
                    ready.append(stage)
                    up.set()
                    await stage._over.wait()


async def _prepare(stage: Stage) -> None:
    """The maker's coins and offers; the taker gets its coins by the page."""
    address = (await stage.maker.call("POST", "/wallet/addresses"))["address"]
    for _ in range(2):
        await stage.processes.control("/fund", {"address": address, "amount_sat": 2 * COINS})

    async def funded() -> bool:
        return bool((await stage.maker.call("GET", "/wallet"))["confirmed"] == 4 * COINS)

    await stage.maker.until(funded)
    await offer(stage.maker)
    answer = await stage.taker.answer("PUT", "/password", {"password": PASSWORD})
    if answer.status_code != 204:
        raise Failed(f"the password was answered with {answer.status_code} {answer.text}")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def offer(maker: Node) -> None:
    """Both sides, a little away from the market."""
    for side in ("short", "long"):
        said = {"side": side, "spread": "0.0025", "max_quantity": 5_000, "funding_rate": "0.0003", "opening_fee": 500}
        await maker.call("POST", "/offers", said)
