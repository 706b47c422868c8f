"""The scenes of the demo: each does one thing as a user would, checks that it came true, and returns what to tell.

What a contract must pay is computed here from its terms, and compared with the chain and with what both nodes say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import trio
from attrs import define, field

from node.regtest.processes import Failed, Node, Processes, due_payouts, healthy
from protocols.contract.oracle import scheme_named

COINS = {"maker": (150_000_000, 150_000_000), "taker": (50_000_000, 50_000_000)}
"""Satoshis of each node's coins; with two, two setups can go on at once."""
LIMIT, QUANTITY, LEVERAGE = 5_000, 1_000, 2
SPREAD = "0.0025"
ANCHOR = 240
"""Satoshis of a commit's anchor, which stays unspent while fees are low."""

Json = dict[str, Any]


@define(eq=False)
class Trade:
    """What the story knows of its two positions, by the taker's side."""

    demo: Processes
    maker: Node
    taker: Node
    offers: dict[str, Json] = field(factory=dict)
    orders: dict[str, str] = field(factory=dict)

    # --- coins and offers ---------------------------------------------------------------------------------------------

    async def fund(self) -> str:
        told = []
        for node in (self.maker, self.taker):
            for amount in COINS[node.name]:
                address = (await node.call("POST", "/wallet/addresses"))["address"]
                paid = (await self.demo.control("/fund", {"address": address, "amount_sat": amount}))["txid"]
                told.append(f"the {node.name} gets {sats(amount)} in {paid}")
        for node in (self.maker, self.taker):

            async def funded(node: Node = node) -> bool:
                return bool((await node.call("GET", "/wallet"))["confirmed"] == sum(COINS[node.name]))

            await node.until(funded)
        return f"Both wallets are funded: {'; '.join(told)}."

    async def offer(self) -> str:
        """Both sides, a spread away from the exchange's quote."""
        for side in ("short", "long"):
            offer = {"side": side, "spread": SPREAD, "max_quantity": LIMIT, "funding_rate": "0.0003"}
            await self.maker.call("POST", "/offers", {**offer, "opening_fee": 500})
        await self._offers_arrive()
        said = "; ".join(
            f"{side} at {offer['price']} USD, {offer['min_quantity']} to {offer['max_quantity']} contracts"
            for side, offer in sorted(self.offers.items())
        )
        return (
            "The maker's offers follow the exchange. They arrive at the taker, over a connection encrypted by Noise, on"
            f" a stream of their own: {said}."
        )

    async def _offers_arrive(self) -> None:
        async def arrived() -> bool:
            offers = [offer for offer in await self.taker.call("GET", "/offers") if not offer["stale"]]
            self.offers = {offer["taker_side"]: offer for offer in offers}
            return len(self.offers) == 2

        await self.taker.until(arrived)

    async def order_too_large(self) -> str:
        order = {"offer_id": self.offers["long"]["id"], "quantity": 2 * LIMIT, "leverage": LEVERAGE}
        answer = await self.taker.answer("POST", "/orders", order)
        problem = answer.json()
        if answer.status_code != 422 or problem.get("field") != "quantity" or str(LIMIT) not in problem["detail"]:
            raise Failed(f"an order of {2 * LIMIT} was answered with {answer.status_code} {answer.text}")
        return f"An order of {2 * LIMIT} contracts is refused: {problem['detail']}."

    # --- positions ----------------------------------------------------------------------------------------------------

    async def order_both(self) -> str:
        """A long and a short, set up side by side on one connection."""
        for side in ("long", "short"):
            await self._order(side)
        told = []
        for side in ("long", "short"):
            position = await self.reaches(self.taker, side, "opening", "open")
            contract = position["contract"]
            told.append(
                f"{side} at {position['price']} USD: it locks {sats(position['margin'])} of a pool of"
                f" {sats(position['pool'])}, is liquidated at {position['liquidation_price']} USD, and has"
                f" {contract['cets']} signed outcomes; the lock is {contract['lock_txid']}"
            )
        size = f"{QUANTITY} contracts at leverage {LEVERAGE} each"
        return f"The taker takes both offers, {size}. {'; '.join(told)}."

    async def _order(self, side: str) -> None:
        """Offers that follow the market are replaced while one looks: then the next one is taken."""
        for _ in range(10):
            order = {"offer_id": self.offers[side]["id"], "quantity": QUANTITY, "leverage": LEVERAGE}
            answer = await self.taker.answer("POST", "/orders", order)
            if answer.status_code == 202:
                self.orders[side] = answer.json()["order_id"]
                position = await self.reaches(self.taker, side, "setting up", "opening", "open", "rejected")
                if position["refusal"] is None:
                    return
                if position["refusal"]["code"] not in ("unknown_offer", "wrong_price"):
                    raise Failed(f"the {side} was refused: {position['refusal']['sentence']}")
            elif answer.status_code != 404:
                raise Failed(f"the {side} was answered with {answer.status_code} {answer.text}")
            await self._offers_arrive()
        raise Failed(f"no offer stood long enough to go {side}")

    async def reaches(self, node: Node, side: str, *states: str) -> Json:
        """The position once it is in one of these states; Failed when it failed instead."""
        position: Json = {}

        async def there() -> bool:
            if (await node.answer("GET", "/positions")).status_code == 503:
                return False  # just started
            position.update(await node.call("GET", f"/positions/{self.orders[side]}"))
            if position["state"] in {"rejected", "setup failed"} - set(states):
                raise Failed(f"the {side} is {position['state']}: {position['refusal']['sentence']}")
            return position["state"] in states

        await node.until(there)
        return position

    async def locks_confirm(self) -> str:
        heights = []
        for side in ("long", "short"):
            await self.reaches(self.maker, side, "open")
            position = await self.reaches(self.taker, side, "open")
            heights.append(str(position["contract"]["lock_height"]))
        return f"The locks confirm, at heights {' and '.join(heights)}. Both positions are open, for maker and taker."

    # --- parts of the world stop --------------------------------------------------------------------------------------

    async def feed_goes_away(self) -> str:
        await self.demo.control("/exchange", {"mode": "drop"})
        quote: Json = {}

        async def stale() -> bool:
            quote.update((await self.taker.call("GET", "/prices"))["BTCUSD"])
            offers = await self.maker.call("GET", "/offers")
            return bool(quote["stale"]) and not offers

        await self.taker.until(stale)
        quoted = (await self.maker.call("GET", "/maker"))["quoted"]
        if not all(each["reason"] for each in quoted):
            raise Failed(f"the maker's offers are gone without a reason: {quoted}")
        for side in ("long", "short"):
            await self.reaches(self.taker, side, "open")
        return (
            f"The exchange drops the line. The last quote, {quote['bid']} / {quote['ask']} USD, is shown with its age,"
            f" {quote['age']:.1f} s, and used no more: the maker's offers are withdrawn ({quoted[0]['reason']}). Both"
            " positions stay open."
        )

    async def feed_comes_back(self) -> str:
        await self.demo.control("/exchange", {"mode": "normal"})
        await self._offers_arrive()
        return "The exchange is back, and so, by themselves, are quotes and offers."

    async def maker_leaves(self) -> str:
        await self.maker.end()

        async def noticed() -> bool:
            (maker,) = await self.taker.call("GET", "/makers")
            return bool(maker["state"] != "healthy")

        await self.taker.until(noticed)
        (maker,) = await self.taker.call("GET", "/makers")
        return f"The maker leaves for good. The taker's node says so: {maker['state']}, {maker['reason']}."

    async def force_close(self) -> str:
        command = [sys.executable, "-m", "node", "force-close", self.orders["long"], "--data", str(self.taker.data)]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        if done.returncode != 0:
            raise Failed(f"cfdnode force-close: {done.stderr.decode()}")
        position = await self.reaches(self.taker, "long", "committed")
        contract = position["contract"]
        return (
            f"The taker force-closes the long: its commit, {contract['commit_txid']}, confirms at height"
            f" {contract['commit_height']}, and nobody's help was needed. The price of its expiry will settle it."
        )

    async def taker_is_killed(self) -> str:
        await self.taker.kill()
        await self.taker.start()
        long = await self.reaches(self.taker, "long", "committed")
        short = await self.reaches(self.taker, "short", "open")
        return (
            "The taker's node is killed (SIGKILL) and started again: the long is"
            f" {long['state']}, the short is {short['state']}, as before."
        )

    # --- expiry -------------------------------------------------------------------------------------------------------

    async def wait_for_expiry(self, say: Callable[[str], None]) -> str:
        position = await self.taker.call("GET", f"/positions/{self.orders['short']}")
        expiry, told = position["contract"]["expiry"], 0
        while (left := expiry - self.demo.calendar.calendar()) > 0:
            hours = -(-left // 3600)
            if hours % 6 == 0 and hours != told:
                told = hours
                say(f"… {hours} hours to expiry, bitcoin at {(await self.demo.control('/state'))['price']} USD.")
            await trio.sleep(min(0.25, self.demo.calendar.wall_seconds(left)))
        told_prices = []
        for side in ("long", "short"):
            position = await self.reaches(self.taker, side, "settling", "settled")
            settlement, contract = position["settlement"], position["contract"]
            if scheme_named(contract["oracle"]).parse_event(settlement["event"])[1] != contract["expiry"]:
                raise Failed(f"the {side} was settled by {settlement['event']}, before its expiry")
            told_prices.append(f"{settlement['price']} USD in {settlement['event']}")
        return f"The hour of expiry comes, and the oracle attests {' and '.join(dict.fromkeys(told_prices))}."

    async def settled(self, side: str) -> str:
        """The commit, its lock, the CET: by the taker alone."""
        position = await self.reaches(self.taker, side, "settled")
        contract, paid = position["contract"], position["paid"]
        blocks = paid["height"] - contract["commit_height"]
        lock = contract["terms"]["timelocks"]["settlement"]
        if paid["kind"] != "cet" or blocks < lock:
            raise Failed(f"a {paid['kind']} confirmed {blocks} blocks after the commit, whose lock is {lock} blocks")
        return (
            f"The {side}: the commit, {contract['commit_txid']}, confirmed at height {contract['commit_height']};"
            f" {blocks} blocks later, its lock of {lock} being over, the CET: {paid['txid']}."
        )

    async def payouts_are_right(self) -> str:
        """What is on the chain, against what the terms say for the attested price, against what the node says."""
        told = []
        for side in ("long", "short"):
            view = await self.taker.call("GET", f"/positions/{self.orders[side]}")
            due = due_payouts(view)
            paid = [output.nValue for output in (await self.demo.transaction(view["paid"]["txid"])).vout]
            if paid != due or sum(paid) != view["pool"]:
                raise Failed(f"the chain pays {paid}, the contract says {due} of {view['pool']}")
            if [view["paid"]["maker_payout"], view["paid"]["taker_payout"]] != paid or not view["paid"]["final"]:
                raise Failed(f"the taker says {view['paid']}, the chain pays {paid}")
            told.append(f"the {side} pays the maker {sats(paid[0])} and the taker {sats(paid[1])}")
        return f"On the chain {'; '.join(told)}: to the satoshi what the contracts say for the attested price."

    async def no_satoshi_is_missing(self) -> str:
        """The taker's wallet holds what it had, less what went into the locks, plus what the CETs paid it."""
        expected = sum(COINS["taker"])
        fees = 0
        for side in ("long", "short"):
            view = await self.taker.call("GET", f"/positions/{self.orders[side]}")
            contract = view["contract"]
            lock = await self.demo.transaction(contract["lock_txid"])
            # the maker's inputs come first, then the taker's; the same of change
            spent = await self.demo.transaction(lock.vin[-1].prevout.hash[::-1].hex())
            expected -= spent.vout[lock.vin[-1].prevout.n].nValue - lock.vout[-1].nValue
            expected += view["paid"]["taker_payout"]
            for txid in (contract["lock_txid"], contract["commit_txid"], view["paid"]["txid"]):
                fees += await self.demo.fee(txid)
            if len(lock.vin) != 2 or len(lock.vout) != 3:
                raise Failed(f"the {side}'s lock has {len(lock.vin)} inputs and {len(lock.vout)} outputs")

        async def adds_up() -> bool:
            return bool((await self.taker.call("GET", "/wallet"))["confirmed"] == expected)

        await self.taker.until(adds_up)
        return (
            f"The taker's wallet holds {sats(expected)}: what it had, less its parts of the locks, plus its payouts."
            f" All transactions of both positions cost {fees} sat of fees and {2 * ANCHOR} sat of anchors, and no other"
            " satoshi left the two traders."
        )


async def is_up(node: Node) -> str:
    health = await healthy(node)
    return f"The {node.name}: {len(health['services'])} services, all healthy; its API is at {node.url}."


def sats(amount: int) -> str:
    return f"{amount:,} sat".replace(",", " ")
