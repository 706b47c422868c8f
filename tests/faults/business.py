"""Two nodes that trade in a world of their own, and somebody who asks their APIs all the time."""

from __future__ import annotations

import json
import socket
import sys
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx2
import trio
from attrs import Factory, define

from node.position.state import State
from node.regtest.processes import Failed, Node, Processes, healthy
from node.regtest.story import OVER, SIGNED, Story, answer, comes_true, positions
from node.regtest.verdicts import Verdict
from tests.faults.injection import INJECTED
from tests.faults.proxies import Proxy

ASKED_EVERY = 0.1
PAUSE = 0.2
STEP = 15.0
"""Seconds after which a trade, a rollover or a close is left to the node, and something else begun."""
OPEN = State.OPEN.value
PAGES = ("/health", "/positions")


@define(eq=False)
class Struck(Processes):
    """A world with nodes of `tests.faults.node`."""

    @asynccontextmanager
    async def running(self, name: str, *arguments: str) -> AsyncIterator[Node]:
        if arguments[0] == "regtest":
            async with Processes.running(self, name, *arguments) as node:
                yield node
            return
        data = self.folder / name
        port_file = self.folder / f"{name}.faults"
        command = (sys.executable, "-m", "tests.faults.node", str(port_file), *arguments)
        node = Node(name, data, self.folder / f"{name}.log", (*command, "--data", str(data)), self.http)
        await node.start()
        try:
            yield node
        finally:
            await node.end()

    async def strike(self, node: Node, do: str, **said: Any) -> dict[str, Any]:
        """See `injection.Faults.strike`."""
        port = int((self.folder / f"{node.name}.faults").read_text())
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(json.dumps({"do": do, **said}).encode() + b"\n")
            got = b""
            while not got.endswith(b"\n"):
                data = await stream.receive_some()
                if not data:
                    raise Failed(f"{node.name} was told to {do} {said} and hung up")
                got += data
        told = json.loads(got)
        if not told.pop("ok"):
            raise Failed(f"{node.name} was told to {do} {said}: {told['error']}")
        return dict(told)


@define(eq=False)
class Asking:
    """A client that asks one node's API all the time, by a new connection each time."""

    node: Node
    within: float
    """Seconds in which each request must be answered."""
    answers: Counter[str] = Factory(Counter)
    slowest: float = 0.0
    slowest_at: str = ""
    begun_again: int = 0
    """Requests that the end of the web server's life cut short."""
    doing: str = ""
    """What goes on meanwhile."""
    served_anew: bool = False
    """Whether the web server is struck now: a request that it had taken may be cut short, and is asked again."""

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                for page in PAGES:
                    nursery.start_soon(self._ask, page)
                await trio.sleep(ASKED_EVERY)

    async def _ask(self, page: str) -> None:
        began, doing = trio.current_time(), self.doing
        try:
            with trio.fail_after(self.within):
                await self._answered(page)
        except trio.TooSlowError:
            raise Failed(f"{self.node.name}: {page} was not answered in {self.within} s, during {doing}") from None
        took = trio.current_time() - began
        if took > self.slowest:
            self.slowest, self.slowest_at = took, doing

    async def _answered(self, page: str) -> None:
        """Asks until there is an answer; only a web server that is struck may cut a request short that it had taken."""
        while True:
            try:
                response = await self.node.answer("GET", page)
            except httpx2.ConnectError as error:
                raise Failed(f"{self.node.name}: a connection attempt was lost, during {self.doing}: {error}") from None
            except httpx2.TransportError as error:
                if not self.served_anew:
                    raise Failed(f"{self.node.name}: {page} was cut short, during {self.doing}: {error!r}") from None
                self.begun_again += 1
                await trio.sleep(ASKED_EVERY)
                continue
            self.answers[f"{page} {response.status_code}"] += 1
            if page == "/health" and response.status_code != 200:
                raise Failed(
                    f"{self.node.name}: health said {response.status_code} {response.text}, during {self.doing}"
                )
            return


@define(eq=False)
class Business(Story):
    """One maker and one taker that trade, roll over and close without end, whatever strikes them."""

    proxies: dict[str, Proxy] = Factory(dict)
    """By the name of the outside world; the taker's to its maker is ``maker``."""
    asking: dict[str, Asking] = Factory(dict)
    """By the node's name."""
    done: Counter[str] = Factory(Counter)
    """What came about."""
    _resting: trio.Event = Factory(trio.Event)

    @asynccontextmanager
    async def open(self, answers_within: float) -> AsyncIterator[None]:
        """Both nodes, up and funded, reach everything through proxies; their APIs are asked until the end."""
        async with trio.open_nursery() as nursery:
            config = await self._proxies(nursery)
            listen = f"127.0.0.1:{_free_port()}"
            async with self.world.maker(f"maker-{self.plan.seed}", "--listen", listen, *config) as self.maker:
                key, _, place = (await answer(self.maker, "/maker"))["address"].partition("@")
                maker = self.proxies["maker"] = Proxy("maker", "127.0.0.1", int(place.rpartition(":")[2]))
                await nursery.start(maker.run)
                address = f"{key}@127.0.0.1:{maker.at}"
                async with self.world.taker(address, f"taker-{self.plan.seed}", *config) as self.taker:
                    await self._begin()
                    async with trio.open_nursery() as asking:
                        for node in self.nodes:
                            self.asking[node.name] = Asking(self._client(node), answers_within)
                            asking.start_soon(self.asking[node.name].run)
                        yield
                        asking.cancel_scope.cancel()
            nursery.cancel_scope.cancel()

    def _client(self, node: Node) -> Node:
        """To ask the node with a new connection for each request."""
        limits = httpx2.Limits(max_keepalive_connections=0)
        http = httpx2.AsyncClient(timeout=60, trust_env=False, limits=limits)
        return Node(node.name, node.data, node.log, (), http)

    async def _proxies(self, nursery: trio.Nursery) -> tuple[str, ...]:
        said = tomllib.loads((self.world.folder / "world" / "world.toml").read_text())
        worlds = {"electrum": said["electrum"], "oracle": said["oracle"]["url"], "exchange": said["prices"]["url"]}
        told = {}
        for name, place in worlds.items():
            scheme, _, rest = place.rpartition("://")
            address, slash, path = rest.partition("/")
            host, _, port = address.rpartition(":")
            proxy = self.proxies[name] = Proxy(name, host, int(port))
            await nursery.start(proxy.run)
            told[name] = f"{scheme}{'://' if scheme else ''}127.0.0.1:{proxy.at}{slash}{path}"
        config = self.world.folder / f"proxies-{self.plan.seed}.toml"
        config.write_text(
            f'electrum = "{told["electrum"]}"\nabandon_after = 10.0\n'
            f'[oracle]\nurl = "{told["oracle"]}"\n[prices]\nurl = "{told["exchange"]}"\n'
        )
        return "--config", str(config)

    # --- what goes on meanwhile ---------------------------------------------------------------------------------------

    async def trade(self) -> None:
        """Trades, rollovers and closes, one after the other; whatever is refused, or fails, is tried again."""
        while not self._resting.is_set():
            order_id = None
            with self._step("a trade"):
                order_id = await self._open_one()
            if order_id is not None:
                with self._step("a rollover"):
                    await self._roll_one(order_id)
                with self._step("a close"):
                    await self._close_one(order_id)
            await trio.sleep(PAUSE)

    def rest(self) -> None:
        """Nothing new is begun."""
        self._resting.set()

    @contextmanager
    def _step(self, doing: str) -> Iterator[None]:
        try:
            with trio.move_on_after(STEP) as limit:
                yield
                self.done[doing] += 1
            if limit.cancelled_caught:
                self.done[f"{doing} given up"] += 1
        except Failed as error:
            self.done[f"{doing} refused: {error}"] += 1
        except (trio.TooSlowError, httpx2.TransportError) as error:
            self.done[f"{doing} not: {type(error).__name__}"] += 1

    async def _open_one(self) -> str:
        order_id = await self._order(await self._offer())
        if order_id is None:
            raise Failed("by whoever is away")
        view = await comes_true(self.taker, f"/positions/{order_id}", lambda view: view["state"] in SIGNED | OVER)
        if view["state"] not in SIGNED:
            raise Failed(view["refusal"]["code"])
        for node in self.nodes:
            await comes_true(node, f"/positions/{order_id}", lambda view: view["state"] not in SIGNED - {OPEN})
        return order_id

    async def order(self) -> str:
        """An order from whatever the taker is offered: the code of its refusal, or the status."""
        offers = (await self.taker.answer("GET", "/offers")).json()
        offer_id = offers[0]["id"] if isinstance(offers, list) and offers else "00" * 16
        response = await self.taker.answer("POST", "/orders", {"offer_id": offer_id, "quantity": 200, "leverage": 1})
        return str(response.json().get("code", response.status_code))

    async def _roll_one(self, order_id: str) -> None:
        path = f"/positions/{order_id}"
        index = (await answer(self.taker, path))["contract"]["index"]
        if not await self._taken(order_id, "rollover"):
            raise Failed("the position ended")
        await comes_true(self.taker, path, lambda view: view["contract"]["index"] > index)

    async def _close_one(self, order_id: str) -> None:
        if await self._taken(order_id, "close"):
            await comes_true(self.taker, f"/positions/{order_id}", lambda view: view["state"] in OVER)

    # --- and afterwards -----------------------------------------------------------------------------------------------

    async def well(self, within: float, doing: str) -> None:
        """Every service of both is healthy."""
        with self.within(f"health after {doing}", within):
            for node in self.nodes:
                try:
                    await healthy(node)
                except trio.Cancelled:
                    self.doing += f": {node.name}: {await self.unwell(node)}"
                    raise

    async def unwell(self, node: Node) -> str:
        with trio.move_on_after(2, shield=True):
            services = (await node.call("GET", "/health"))["services"]
            return "; ".join(f"{s['name']} {s['state']}: {s['reason']}" for s in services if s["state"] != "healthy")
        return "no answer"

    async def came_out_right(self) -> None:
        """Every position ends, alike for both, paid as its contract says; no satoshi is missing, no bug was met."""
        for view in await positions(self.taker):
            if view["state"] == OPEN:
                await self._taken(view["order_id"], "close")
        verdict = Verdict(self)
        for node in self.nodes:
            with self.within(f"the end of the {node.name}'s positions", 120):
                await comes_true(node, "/positions", verdict._over)
        await verdict.agree()
        await verdict.coins_free()
        await verdict.money()
        for node in self.nodes:
            for line in node.log.read_text(errors="replace").splitlines():
                if ("[error" in line or "[critical" in line) and INJECTED not in line:
                    raise Failed(f"{node.log} tells of a bug: {line}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
