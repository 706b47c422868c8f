"""``scripts/chaos``: nodes are killed at random moments; their positions and coins must come out right all the same.

A story is one maker and one taker in a world that they share with other stories. They make trades; one of the two is
killed at random moments of setups and settlements, as by a power cut, and started again. When the dust has settled,
every position has ended the same way for both, has paid what its contract says, and no satoshi is missing.
"""

from __future__ import annotations

import argparse
import random
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import trio
from attrs import Factory, define, field, frozen
from bitcoin.core import CTxOut

from node.position.state import ENDED, State
from node.regtest.processes import Failed, Node, Processes, due_payouts, end_in_order, healthy
from protocols.contract.scripts import ANCHOR_SCRIPT

HOUR = 2.0
"""Seconds that an hour takes: a setup on a busy machine must not take longer."""
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
DOWN = 3.0
"""Seconds for which a killed node stays away at most."""
SIGNING = 0.25
"""Of kills during setups, how many come when the lock is half signed: chance alone seldom meets that moment."""
SETTLING = (-0.3, 4.5)
"""Hours before and after an expiry in which a settlement is disturbed: the CET is final about four hours after it."""
CONFIG = "chaos.toml"
"""What the nodes read beside what the world says."""
AT_ONCE = 4
"""Stories in one world."""
KILLS_PER_STORY = 5
PATIENCE = 90.0
"""Seconds that anything but waiting for expiry may take, on a machine that is busy with other stories."""
HIGHEST_FEE = 5_000
"""Satoshis that no transaction of such a trade needs to pay."""
FAILED = frozenset({State.REJECTED.value, State.SETUP_FAILED.value})
SIGNED = frozenset({State.OPENING.value, State.OPEN.value})
OVER = frozenset(state.value for state in ENDED)

Victim = Literal["maker", "taker"]


@frozen
class Kill:
    """When somebody is killed, as drawn: `moment` is the part of a setup's or the settlements' time that has passed."""

    victim: Victim
    moment: float
    down: float
    """Seconds until it is started again."""
    signing: bool = False
    """During a setup, whatever the moment: once the taker has signed the lock, and before the maker has, if we can."""


@frozen
class Plan:
    """What a seed says shall happen. What becomes of it depends on the machine, too."""

    seed: int
    setups: tuple[Kill, ...]
    settlements: tuple[Kill, ...]

    @property
    def kills(self) -> int:
        return len(self.setups) + len(self.settlements)

    @classmethod
    def drawn(cls, seed: int, kills: int = KILLS_PER_STORY) -> Plan:
        """About three of five kills disturb setups; there are more different moments in those."""
        draw = random.Random(seed)
        victims: tuple[Victim, Victim] = ("maker", "taker")
        drawn = [
            Kill(draw.choice(victims), draw.random(), draw.uniform(0, DOWN), draw.random() < SIGNING)
            for _ in range(kills)
        ]
        settlements = kills * 2 // 5
        by_moment = sorted(drawn[:settlements], key=lambda kill: kill.moment)
        return cls(seed, tuple(drawn[settlements:]), tuple(by_moment))


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
    _draw: random.Random = field(init=False)
    _funds: list[str] = Factory(list)
    """Ids of the transactions that paid the first coins."""
    _disturbed: list[tuple[Kill, str | None]] = Factory(list)
    """Each kill during a setup and the order id, if there is a position of it."""

    @_draw.default
    def _drawn(self) -> random.Random:
        return random.Random(~self.plan.seed)

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.maker, self.taker

    async def tell(self) -> None:
        """All of it; `failure` says what did not come true."""
        config = ("--config", str(self.world.folder / CONFIG))
        listen = f"127.0.0.1:{_free_port()}"  # where it must be found again
        try:
            async with self.world.maker(f"maker-{self.plan.seed}", "--listen", listen, *config) as self.maker:
                self.doing = "the maker's start"
                address = (await _answer(self.maker, "/maker"))["address"]
                async with self.world.taker(address, f"taker-{self.plan.seed}", *config) as self.taker:
                    await self._go_on()
        except (Failed, trio.TooSlowError, httpx2.HTTPError) as error:
            reason = f"{self.doing} did not come within its time" if isinstance(error, trio.TooSlowError) else error
            self.failure = f"seed {self.plan.seed}: {reason!s}"

    async def _go_on(self) -> None:
        await self._begin()
        await self._setups()
        await self._settlements()
        await self._all_over()
        await self._agree()
        await self._coins_free()
        await self._money()
        self._no_bugs()

    # --- what happens -------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Both are up and have coins."""
        with self._within("both nodes healthy"):
            for node in self.nodes:
                await healthy(node)
        with self._within("both wallets funded"):
            for node in self.nodes:
                for _ in range(COINS):
                    address = (await node.call("POST", "/wallet/addresses"))["address"]
                    paid = await self.world.control("/fund", {"address": address, "amount_sat": COIN})
                    self._funds.append(paid["txid"])
            for node in self.nodes:
                await _comes_true(node, "/wallet", lambda wallet: wallet["confirmed"] == COINS * COIN)

    async def _setups(self) -> None:
        """A trade that nobody disturbs, to learn how long one takes, then the others, then one more to see that it can.

        The clock for the disturbed ones runs from the order on: what comes first may be killed before it has an id.
        """
        takes = await self._undisturbed()
        for kill in self.plan.setups:
            known = {position["order_id"] for position in await _positions(self.taker)}
            offer = await self._offer()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._order, offer)
                if kill.signing:
                    with trio.move_on_after(2 * takes):
                        await self._half_signed(known)
                else:
                    await trio.sleep(kill.moment * takes)
                await self._strike(kill)
            after = {position["order_id"] for position in await _positions(self.taker)}
            self._disturbed.append((kill, next(iter(after - known), None)))
        await self._undisturbed()

    async def _undisturbed(self) -> float:
        """A trade; returns the seconds that it took. Refused at first it may be: the machine may be too busy."""
        refusal: Any = None
        for _ in range(TRIES):
            began = trio.current_time()
            order_id = await self._order(await self._offer())
            if order_id is None:
                continue
            with self._within("a trade that nobody disturbs"):
                path = f"/positions/{order_id}"
                view = await _comes_true(self.taker, path, lambda view: view["state"] in SIGNED | OVER)
                if view["state"] in SIGNED:
                    await _comes_true(self.maker, path, lambda view: view["state"] in SIGNED)
                    return trio.current_time() - began
                refusal = view["refusal"]
                self.outcomes[f"nobody killed during a setup: {refusal['code']}"] += 1
                await trio.sleep(PAUSE)
        raise Failed(f"trades that nobody disturbs do not come about: {refusal}")

    async def _offer(self) -> dict[str, Any]:
        """A fresh one, as the taker sees it."""
        side = self._draw.choice(("long", "short"))
        with self._within("an offer at the taker"):
            price = (await self.world.control("/state"))["price"]
            said = {"side": side, "price": price.partition(".")[0], "funding_rate": "0.0003", "opening_fee": 200}
            made = await _comes_true(self.maker, "/offers", lambda offer: "id" in offer, method="POST", body=said)
            offers = await _comes_true(
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
        node = self.maker if kill.victim == "maker" else self.taker
        await node.kill()
        await trio.sleep(kill.down)
        await node.start()

    async def _half_signed(self, known: Collection[str]) -> None:
        """Wait until the taker's signatures of a lock that is not known yet leave."""
        while True:
            views = await _positions(self.taker)
            if any(view["state"] == State.OPENING.value and view["order_id"] not in known for view in views):
                return

    async def _settlements(self) -> None:
        views = [view for node in self.nodes for view in await _positions(node) if view["contract"]]
        clock, expiries = self.world.calendar, [view["contract"]["expiry"] for view in views]
        first, last = min(expiries) + SETTLING[0] * 3600, max(expiries) + SETTLING[1] * 3600
        for kill in self.plan.settlements:
            moment = first + kill.moment * (last - first)
            await trio.sleep(max(0.0, clock.wall_seconds(moment - clock.calendar())))
            await self._strike(kill)

    # --- what must have come of it ------------------------------------------------------------------------------------

    async def _all_over(self) -> None:
        """No position stands between two states for ever."""
        views = [view for node in self.nodes for view in await _positions(node) if view["contract"]]
        clock, last = self.world.calendar, max(view["contract"]["expiry"] for view in views)
        await trio.sleep(max(0.0, clock.wall_seconds(last + SETTLING[1] * 3600 - clock.calendar())))
        for node in self.nodes:
            with self._within(f"the end of the {node.name}'s positions"):
                await _comes_true(node, "/positions", self._over)

    def _over(self, views: list[dict[str, Any]]) -> bool:
        standing = {view["order_id"]: view["state"] for view in views if view["state"] not in OVER}
        self.doing = f"{self.doing.partition(':')[0]}: {standing}"
        return not standing

    async def _agree(self) -> None:
        """Every position ended for both, and in the same way; what was paid is what the contract says."""
        making = {view["order_id"]: view for view in await _positions(self.maker)}
        taking = {view["order_id"]: view for view in await _positions(self.taker)}
        ended: dict[str | None, str] = {None: "no order was placed"}
        for order_id in making.keys() | taking.keys():
            views = [views[order_id] for views in (making, taking) if order_id in views]
            states = {view["state"] for view in views}
            if states <= FAILED:
                spent_back = any(view["refusal"]["code"] == "lock_abandoned" for view in views)
                ended[order_id] = "lock given up, coins spent back" if spent_back else "setup failed, coins free"
            elif states == {State.SETTLED.value} and len(views) == 2:
                await self._paid(views)
                ended[order_id] = "opened and settled"
            else:
                told = {view["role"]: view["state"] for view in views}
                raise Failed(f"position {order_id} came out different for both: {told}")
        for kill, order in self._disturbed:
            when = "while a lock is signed" if kill.signing else "during a setup"
            self.outcomes[f"{kill.victim} killed {when}: {ended[order]}"] += 1
        for kill in self.plan.settlements:
            self.outcomes[f"{kill.victim} killed during settlements: all paid as due"] += 1

    async def _paid(self, views: Sequence[dict[str, Any]]) -> None:
        # a node that was away at the time may know the CET alone; who published it knows the price
        attested = [view for view in views if view["settlement"] and view["settlement"]["price"] is not None]
        if not attested:
            raise Failed(f"position {views[0]['order_id']} was settled, and nobody knows at what price")
        due = due_payouts(attested[0])
        on_chain = await self.world.transaction(views[0]["paid"]["txid"])
        paid = [output.nValue for output in on_chain.vout]
        told = [[view["paid"]["maker_payout"], view["paid"]["taker_payout"]] for view in views]
        if paid != due or any(each != due for each in told):
            raise Failed(f"position {views[0]['order_id']} paid {paid}, told {told}; its contract says {due}")

    async def _coins_free(self) -> None:
        """Nothing is held for positions that are over."""
        for node in self.nodes:
            with self._within(f"nothing held in the wallet of the {node.name}"):
                await _comes_true(
                    node,
                    "/wallet",
                    lambda wallet: not any(wallet[held] for held in ("pending", "reserved", "margin_locked")),
                )

    async def _money(self) -> None:
        """Both wallets, the miners' fees and the anchors that nobody spent add up to the first coins."""
        to_follow: dict[tuple[str, int], CTxOut] = {}
        for txid in self._funds:
            paid = (await self.world.transaction(txid)).vout
            to_follow |= {(txid, n): output for n, output in enumerate(paid) if output.nValue == COIN}
        seen: set[str] = set()
        fees, anchors, unspent = 0, 0, 0
        while to_follow:
            (txid, vout), output = to_follow.popitem()
            spender = (await self.world.control(f"/spender/{txid}/{vout}"))["txid"]
            if spender is None and bytes(output.scriptPubKey) == ANCHOR_SCRIPT:
                anchors += output.nValue
            elif spender is None:
                unspent += output.nValue
            elif spender not in seen:
                seen.add(spender)
                fee = await self.world.fee(spender)
                if fee > HIGHEST_FEE:
                    raise Failed(f"{spender} pays a fee of {fee} sat")
                fees += fee
                to_follow |= {(spender, n): made for n, made in enumerate((await self.world.transaction(spender)).vout)}
        first = COINS * COIN
        if unspent + fees + anchors != 2 * first:
            raise Failed(f"unspent {unspent}, fees {fees}, anchors {anchors} sat are not the {2 * first} of the start")
        with self._within("the wallets' agreement with the chain"):
            while sum(has := [(await _answer(node, "/wallet"))["confirmed"] for node in self.nodes]) != unspent:
                self.doing = f"the wallets' agreement with the chain: they say {has}, unspent there are {unspent} sat"
                await trio.sleep(0.2)
        for node, left in zip(self.nodes, has, strict=True):
            views = await _positions(node)
            due = first + sum(view["paid"]["payout"] - view["margin"] for view in views if view["paid"])
            if not 0 <= due - left <= fees + anchors:
                raise Failed(
                    f"the {node.name} has {left} sat; its contracts leave it {due} less its part of {fees} sat"
                )

    def _no_bugs(self) -> None:
        """Nothing happened in any life of a node that the node did not expect."""
        for node in self.nodes:
            for line in node.log.read_text(errors="replace").splitlines():
                if "[error" in line or "[critical" in line:
                    raise Failed(f"{node.log} tells of a bug: {line}")

    @contextmanager
    def _within(self, doing: str, seconds: float = PATIENCE) -> Iterator[None]:
        self.doing = doing
        with trio.fail_after(seconds):
            yield


async def _answer(node: Node, path: str) -> Any:
    """Once the node gives one."""
    with trio.fail_after(PATIENCE):
        return await _comes_true(node, path, lambda _: True)


async def _positions(node: Node) -> list[dict[str, Any]]:
    return list(await _answer(node, "/positions"))


async def _comes_true(
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


# --- many stories -----------------------------------------------------------------------------------------------------


async def tell_all(folder: Path, plans: Sequence[Plan]) -> list[Story]:
    """The stories of these plans, all at once in one world."""
    (folder / CONFIG).write_text(f"abandon_after = {ABANDON_AFTER}\ncooperative_spend = false\n")
    stories: list[Story] = []
    async with httpx2.AsyncClient(timeout=15, trust_env=False) as http:
        world = Processes(folder, HOUR, http)
        async with world.world() as process:
            with trio.fail_after(PATIENCE):
                await world.world_is_up(process)
            async with trio.open_nursery() as nursery:
                for plan in plans:
                    stories.append(story := Story(plan, world))
                    nursery.start_soon(story.tell)
    return stories


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if every story came out right, else 1."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="What becomes of nodes that are killed.")
    parser.add_argument("--kills", type=int, required=True, metavar="N", help="how often a node is killed")
    parser.add_argument(
        "--seed", type=int, default=1, help=f"of the first {KILLS_PER_STORY} kills (1); the next ones have the next"
    )
    options = parser.parse_args(arguments)
    if options.kills < 1:
        parser.error(f"--kills is {options.kills}, allowed is 1 or more")
    end_in_order()
    try:
        return _report(plans_for(options.kills, options.seed))
    except* KeyboardInterrupt:  # out of nurseries
        print("\nended by you")
    return 130


def _report(plans: Sequence[Plan]) -> int:
    """Tell the stories, a few at a time, and print what became of them."""
    outcomes: Counter[str] = Counter()
    failed: list[Story] = []
    began, kills = time.monotonic(), 0
    for first in range(0, len(plans), AT_ONCE):
        folder = Path(tempfile.mkdtemp(prefix="cfdnode-chaos-"))
        stories = trio.run(tell_all, folder, plans[first : first + AT_ONCE])
        bad = [story for story in stories if story.failure]
        for story in stories:
            outcomes += story.outcomes
            kills += story.plan.kills
        for story in bad:
            print(f"FAILED {story.failure}; data and logs are in {folder}", flush=True)
        failed += bad
        if not bad:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{time.monotonic() - began:5.0f} s  {kills} of {sum(plan.kills for plan in plans)} kills", flush=True)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:5}  {outcome}")
    if failed:
        seeds = ", ".join(str(story.plan.seed) for story in failed)
        print(f"{len(failed)} of {len(plans)} stories failed, those of the seeds {seeds}")
        return 1
    print(f"All {len(plans)} stories came out right: every position ended alike for both, no satoshi is missing.")
    return 0


def plans_for(kills: int, seed: int) -> list[Plan]:
    """One for each seed from `seed` on, until there are so many kills."""
    starts = range(0, kills, KILLS_PER_STORY)
    return [Plan.drawn(seed + n, min(KILLS_PER_STORY, kills - start)) for n, start in enumerate(starts)]


if __name__ == "__main__":
    sys.exit(main())
