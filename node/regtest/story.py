"""One maker and one taker in a world that they share with other stories, and what is done to them.

They make trades, roll them over, close them, force-close them and let them expire. One of the two, or both, are killed
at random moments of all that, as by a power cut, and started again. When the dust has settled, every position has ended
the same way for both, has paid what its contract says, no satoshi is missing, and nothing that was on record is gone
(:mod:`node.regtest.verdicts`).
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import trio
from attrs import Factory, define, field

from node.position.state import ENDED, State
from node.regtest.plans import Kill, Plan
from node.regtest.processes import Failed, Node, Processes, healthy
from node.regtest.records import Records

TRIES = 12
"""Of a trade that nobody disturbs: a busy oracle may not answer in time, and a coin of the taker's may be promised to a
lock that the maker, who was away, has not given up yet."""
PAUSE = 4.0
"""Seconds after a refusal."""
COIN, COINS = 50_000_000, 3
"""Satoshis, and how many of these each wallet begins with: some may be held by what was interrupted."""
QUANTITIES, LEVERAGES = range(200, 1_100, 100), (1, 2, 3)
"""No such position is liquidated within a day of the world's random walk."""
ABANDON_AFTER = 10.0
"""Seconds after which the nodes give up a lock that is in no mempool."""
SETTLING = (-0.3, 4.5)
"""Hours before and after an expiry in which a settlement is disturbed: the CET is final about four hours after it."""
PATIENCE = 90.0
"""Seconds that anything but waiting for expiry may take, on a machine that is busy with other stories."""
LEFT = 3 * 3600
"""Seconds of the calendar before expiry until which a position is chosen for a rollover or a close."""
ROLLING = 1.5
"""Seconds that a rollover or a close takes at most on such a machine, if nobody disturbs it."""
FAILED = frozenset({State.REJECTED.value, State.SETUP_FAILED.value})
SIGNED = frozenset({State.OPENING.value, State.OPEN.value})
OVER = frozenset(state.value for state in ENDED)


@define(eq=False)
class Story:
    """One maker, one taker, and what becomes of them."""

    plan: Plan
    world: Processes
    maker: Node = field(init=False)
    taker: Node = field(init=False)
    outcomes: Counter[str] = Factory(Counter)
    failure: str = ""
    doing: str = ""
    """What is waited for; told when it does not come."""
    funds: list[str] = Factory(list)
    """Ids of the transactions that paid the first coins."""
    disturbed: list[tuple[Kill, str | None]] = Factory(list)
    """Each kill and the order id of the position that it was about, if there is one."""
    records: dict[str, Records] = Factory(dict)
    """By the node's name."""
    _draw: random.Random = field(init=False)

    @_draw.default
    def _drawn(self) -> random.Random:
        return random.Random(~self.plan.seed)

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.maker, self.taker

    async def tell(self, verdict: Callable[[Story], Awaitable[None]]) -> None:
        """All of it; `failure` says what did not come true."""
        config = self.world.folder / f"chaos-{self.plan.seed}.toml"  # what the nodes read beside what the world says
        together = str(self.plan.together).lower()
        config.write_text(f"abandon_after = {ABANDON_AFTER}\ncooperative_spend = {together}\n")
        arguments = ("--config", str(config))
        listen = f"127.0.0.1:{_free_port()}"  # where it must be found again
        try:
            async with self.world.maker(f"maker-{self.plan.seed}", "--listen", listen, *arguments) as self.maker:
                self.doing = "the maker's start"
                address = (await answer(self.maker, "/maker"))["address"]
                async with self.world.taker(address, f"taker-{self.plan.seed}", *arguments) as self.taker:
                    self.records = {node.name: Records(node) for node in self.nodes}
                    await self._go_on()
                    await verdict(self)
        except (Failed, trio.TooSlowError, httpx2.HTTPError) as error:
            reason = f"{self.doing} did not come within its time" if isinstance(error, trio.TooSlowError) else error
            self.failure = f"seed {self.plan.seed}: {reason!s}"

    async def _go_on(self) -> None:
        await self._begin()
        await self._setups()
        await self._rollovers()
        await self._closes()
        await self._settlements()

    # --- what happens -------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Both are up and have coins."""
        with self.within("both nodes healthy"):
            for node in self.nodes:
                await healthy(node)
        with self.within("both wallets funded"):
            for node in self.nodes:
                for _ in range(COINS):
                    address = (await node.call("POST", "/wallet/addresses"))["address"]
                    paid = await self.world.control("/fund", {"address": address, "amount_sat": COIN})
                    self.funds.append(paid["txid"])
            for node in self.nodes:
                await comes_true(node, "/wallet", lambda wallet: wallet["confirmed"] == COINS * COIN)

    async def _setups(self) -> None:
        """A trade that nobody disturbs, to learn how long one takes, then the others, then one more to see that it can.

        The clock for the disturbed ones runs from the order on: what comes first may be killed before it has an id.
        """
        takes = await self._undisturbed()
        for kill in self.plan.during("setup"):
            known = {position["order_id"] for position in await positions(self.taker)}
            offer = await self._offer()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._order, offer)
                if kill.signing:
                    with trio.move_on_after(2 * takes):
                        await self._half_signed(known)
                else:
                    await trio.sleep(kill.moment * takes)
                await self._strike(kill)
            after = {position["order_id"] for position in await positions(self.taker)}
            self.disturbed.append((kill, next(iter(after - known), None)))
        await self._undisturbed()

    async def _undisturbed(self) -> float:
        """A trade; returns the seconds that it took. Refused at first it may be: the machine may be too busy."""
        refusal: Any = None
        for _ in range(TRIES):
            began = trio.current_time()
            order_id = await self._order(await self._offer())
            if order_id is None:
                continue
            with self.within("a trade that nobody disturbs"):
                path = f"/positions/{order_id}"
                view = await comes_true(self.taker, path, lambda view: view["state"] in SIGNED | OVER)
                if view["state"] in SIGNED:
                    await comes_true(self.maker, path, lambda view: view["state"] in SIGNED)
                    return trio.current_time() - began
                refusal = view["refusal"]
                self.outcomes[f"nobody killed during a setup: {refusal['code']}"] += 1
                await trio.sleep(PAUSE)
        raise Failed(f"trades that nobody disturbs do not come about: {refusal}")

    async def _offer(self) -> dict[str, Any]:
        """A fresh one, as the taker sees it."""
        side = self._draw.choice(("long", "short"))
        with self.within("an offer at the taker"):
            price = (await self.world.control("/state"))["price"]
            said = {"side": side, "price": price.partition(".")[0], "funding_rate": "0.0003", "opening_fee": 200}
            made = await comes_true(self.maker, "/offers", lambda offer: "id" in offer, method="POST", body=said)
            offers = await comes_true(
                self.taker, "/offers", lambda offers: any(offer["id"] == made["id"] for offer in offers)
            )
            return next(offer for offer in offers if offer["id"] == made["id"])

    async def _order(self, offer: dict[str, Any]) -> str | None:
        """The order's id; None when nobody was there to say."""
        order = {
            "offer_id": offer["id"],
            "quantity": self._draw.choice(QUANTITIES),
            "leverage": self._draw.choice(LEVERAGES),
        }
        try:
            answer = await self.taker.answer("POST", "/orders", order)
        except httpx2.TransportError:
            return None
        if answer.status_code in (404, 409, 503):
            return None  # the maker, and its offer with it, is gone already
        if answer.status_code != 202:
            raise Failed(f"an order was answered with {answer.status_code} {answer.text}")
        return str(answer.json()["order_id"])

    async def _strike(self, kill: Kill) -> None:
        struck = [node for node in self.nodes if kill.victim == "both" or node.name.startswith(kill.victim)]
        for pause in (kill.down, 0.0) if kill.again is not None else (kill.down,):
            async with trio.open_nursery() as nursery:
                for node in struck:
                    nursery.start_soon(node.kill)
            for node in struck:
                self.records[node.name].check()
            await trio.sleep(pause)
            for node in struck:
                await node.start()
            if kill.again is not None and pause:
                await trio.sleep(kill.again)

    async def _half_signed(self, known: Collection[str]) -> None:
        """Wait until the taker's signatures of a lock that is not known yet leave."""
        while True:
            views = await positions(self.taker)
            if any(view["state"] == State.OPENING.value and view["order_id"] not in known for view in views):
                return

    async def _rollovers(self) -> None:
        """Positions are rolled over by hand, and whoever is killed finds what it must finish on its disk."""
        for kill in self.plan.during("rollover"):
            view = await self._asked("rollover")
            await trio.sleep(kill.moment * ROLLING)
            await self._strike(kill)
            self.disturbed.append((kill, view["order_id"]))
            with self.within("a rollover that was disturbed is over"):
                for node in self.nodes:
                    await comes_true(
                        node, f"/positions/{view['order_id']}", lambda view: view["state"] != State.ROLLING_OVER.value
                    )
            with self.within("both have the same contract"):
                await self._alike(view["order_id"])

    async def _alike(self, order_id: str) -> None:
        while True:
            standing = {
                (await answer(node, f"/positions/{order_id}"))["contract"]["commit_txid"] for node in self.nodes
            }
            if len(standing) == 1:
                return
            await trio.sleep(0.2)

    async def _closes(self) -> None:
        for kill in self.plan.during("close", "force close"):
            view = await self._asked("close") if kill.scene == "close" else await self._standing()
            order_id = view["order_id"]
            if kill.scene == "close":
                self.records[self.taker.name].acknowledged(order_id, "CloseProposed")
            else:
                node = self._draw.choice(self.nodes)
                with self.within("force close"):
                    await comes_true(node, f"/positions/{order_id}/force-close", lambda _: True, method="POST")
                self.records[node.name].acknowledged(order_id, "CommitPublishing")
            await trio.sleep(kill.moment * ROLLING)
            await self._strike(kill)
            self.disturbed.append((kill, order_id))

    async def _standing(self) -> dict[str, Any]:
        """A position that is open for both; a new one if there is none."""
        with self.within("a position that is open for both"):
            making = {view["order_id"]: view["state"] for view in await positions(self.maker)}
            views = [
                view
                for view in await positions(self.taker)
                if view["state"] == making.get(view["order_id"]) == State.OPEN.value
                and view["contract"]["expiry"] - self.world.calendar.calendar() > LEFT
            ]
        if views:
            return self._draw.choice(views)
        known = {view["order_id"] for view in await positions(self.taker)}
        await self._undisturbed()
        with self.within("the new position is open for both"):
            new = next(iter({view["order_id"] for view in await positions(self.taker)} - known))
            for node in self.nodes:
                await comes_true(node, f"/positions/{new}", lambda view: view["state"] == State.OPEN.value)
        return dict(await answer(self.taker, f"/positions/{new}"))

    async def _asked(self, what: str) -> dict[str, Any]:
        """`close` or `rollover` of a position that is open for both; of another if this one ends meanwhile."""
        while True:
            view = await self._standing()
            if await self._taken(view["order_id"], what):
                return view

    async def _taken(self, order_id: str, what: str) -> bool:
        """Asked again of the taker, which may not yet have found its maker, or a fresh quote; False: it ended first."""
        path = f"/positions/{order_id}"
        with self.within(f"{path}/{what}"):
            while (await answer(self.taker, path))["state"] in (State.OPEN.value, State.ROLLING_OVER.value):
                response = await self.taker.answer("POST", f"{path}/{what}", {} if what == "close" else None)
                if response.status_code == 202:
                    return True
                if response.status_code not in (404, 409, 503):
                    raise Failed(f"{path}/{what} was answered with {response.status_code} {response.text}")
                self.doing = f"{path}/{what}: {response.json().get('detail')}"
                await trio.sleep(0.2)
        return False

    async def _settlements(self) -> None:
        views = [view for node in self.nodes for view in await positions(node) if view["contract"]]
        clock, expiries = self.world.calendar, [view["contract"]["expiry"] for view in views]
        first, last = min(expiries) + SETTLING[0] * 3600, max(expiries) + SETTLING[1] * 3600
        for kill in self.plan.during("settlement"):
            moment = first + kill.moment * (last - first)
            await trio.sleep(max(0.0, clock.wall_seconds(moment - clock.calendar())))
            await self._strike(kill)
            self.disturbed.append((kill, None))

    @contextmanager
    def within(self, doing: str, seconds: float = PATIENCE) -> Iterator[None]:
        self.doing = doing
        with trio.fail_after(seconds):
            yield


async def answer(node: Node, path: str) -> Any:
    """Once the node gives one."""
    with trio.fail_after(PATIENCE):
        return await comes_true(node, path, lambda _: True)


async def positions(node: Node) -> list[dict[str, Any]]:
    return list(await answer(node, "/positions"))


async def comes_true(
    node: Node, path: str, wanted: Callable[[Any], bool], *, method: str = "GET", body: object = None
) -> Any:
    """The first answer that is as wanted. While the node is starting, or a service is away, it is asked again."""
    answer: Any = None

    async def asked() -> bool:
        nonlocal answer
        response = await node.answer(method, path, body)
        if response.status_code in (401, 404, 503):  # away, not yet, or another process has its port meanwhile
            return False
        if response.status_code >= 400:
            raise Failed(f"{node.name}: {method} {path}: {response.json().get('detail', response.text)}")
        answer = response.json()
        return wanted(answer)

    await node.until(asked)
    return answer


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
