"""The scenes of the demo: each does one thing as a user would, checks that it came true, and returns what to tell.

What a contract must pay is computed here from its terms, and compared with the chain and with what both nodes say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from attrs import define, field

from node.regtest.processes import Failed, Node, Processes, close_payouts, due_payouts, healthy
from protocols.contract.oracle import scheme_named

COINS = {"maker": (150_000_000, 150_000_000), "taker": (50_000_000, 50_000_000)}
"""Satoshis of each node's coins; with two, two setups can go on at once."""
LIMIT, QUANTITY, LEVERAGE, BOLD = 5_000, 1_000, 2, 5
SPREAD = "0.0025"
OPEN = ("open", "rolling over")
ANCHOR = 240
"""Satoshis of a commit's anchor, which stays unspent while fees are low."""

Json = dict[str, Any]


@define(eq=False)
class Trade:
    """What the story knows of its positions: by the taker's side, and one that is bold."""

    demo: Processes
    maker: Node
    taker: Node
    alone: Path
    """The part of the taker's configuration that the story changes."""
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
            await self._order(side, side, LEVERAGE)
        told = []
        for side in ("long", "short"):
            position = await self.reaches(self.taker, side, "opening", *OPEN)
            contract = position["contract"]
            told.append(
                f"{side} at {position['price']} USD: it locks {sats(position['margin'])} of a pool of"
                f" {sats(position['pool'])}, is liquidated at {position['liquidation_price']} USD, and has"
                f" {contract['cets']} signed outcomes; the lock is {contract['lock_txid']}"
            )
        size = f"{QUANTITY} contracts at leverage {LEVERAGE} each"
        return f"The taker takes both offers, {size}. {'; '.join(told)}."

    async def _order(self, side: str, name: str, leverage: int) -> None:
        """Offers that follow the market are replaced while one looks: then the next one is taken."""
        for _ in range(10):
            order = {"offer_id": self.offers[side]["id"], "quantity": QUANTITY, "leverage": leverage}
            answer = await self.taker.answer("POST", "/orders", order)
            if answer.status_code == 202:
                self.orders[name] = answer.json()["order_id"]
                position = await self.reaches(self.taker, name, "setting up", "opening", "open", "rejected")
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
            await self.reaches(self.maker, side, *OPEN)
            position = await self.reaches(self.taker, side, *OPEN)
            heights.append(str(position["contract"]["lock_height"]))
        return f"The locks confirm, at heights {' and '.join(heights)}. Both positions are open, for maker and taker."

    # --- what two that are both there can do --------------------------------------------------------------------------

    async def roll_over(self) -> str:
        """By the taker's own schedule."""
        told = []
        for side in ("long", "short"):
            position: Json = {}

            async def rolled(side: str = side, position: Json = position) -> bool:
                position.update(await self.taker.call("GET", f"/positions/{self.orders[side]}"))
                theirs = await self.maker.call("GET", f"/positions/{self.orders[side]}")
                alike = position["contract"]["commit_txid"] == theirs["contract"]["commit_txid"]
                return bool(alike and position["contract"]["index"] > 0 and position["state"] == "open")

            await self.taker.until(rolled)
            contract, rollover = position["contract"], position["rollover"]
            if (rollover["own_revoked"], rollover["peer_revoked"]) != (contract["index"],) * 2:
                raise Failed(f"the {side}'s contract {contract['index']} stands, and not all before it are revoked")
            hours = (contract["expiry"] - self.demo.calendar.calendar()) / 3600
            told.append(f"the {side} stands at contract {contract['index']} and expires in {hours:.1f} h")
        return (
            f"Both positions roll over by themselves, off-chain: {'; '.join(told)}. The old contracts are revoked by"
            " both sides, and who publishes one loses all that is in it."
        )

    async def close(self) -> str:
        """At the price that is shown, within the limit."""
        proposed: Json = {}

        async def asked() -> bool:
            answer = await self.taker.answer("POST", f"/positions/{self.orders['long']}/close", {})
            proposed.update(answer.json())
            return answer.status_code == 202

        async def closed() -> bool:
            view = await self.taker.call("GET", f"/positions/{self.orders['long']}")
            if view["state"] == "closed":
                return True
            if view["state"] in OPEN and (view["closing"] is None or view["closing"]["stage"] == "refused"):
                await asked()  # it was being rolled over, or the price has moved: the user tries again
            return False

        await self.taker.until(asked)
        await self.taker.until(closed)
        await self.reaches(self.maker, "long", "closed")
        view = await self.taker.call("GET", f"/positions/{self.orders['long']}")
        price, paid, due = view["closing"]["price"], view["paid"], close_payouts(view)
        outputs = [output.nValue for output in (await self.demo.transaction(paid["txid"])).vout]
        if outputs != due or [paid["maker_payout"], paid["taker_payout"]] != due:
            raise Failed(f"the close pays {outputs}, the node says {paid}, by the terms it is {due}")
        return (
            f"The taker closes the long at {price} USD, the quote's side that favours the maker, limit"
            f" {view['closing']['limit']} USD. Both sign as one key; {paid['txid']} pays the maker {sats(due[0])} and"
            f" the taker {sats(due[1])}, the price's payouts and half of the fees that are not needed any more."
        )

    async def order_bold(self) -> str:
        await self._offers_arrive()
        await self._order("long", "bold", BOLD)
        position = await self.reaches(self.taker, "bold", *OPEN)
        await self.reaches(self.maker, "bold", *OPEN)
        return (
            f"The taker goes long again, at leverage {BOLD} this time: {sats(position['margin'])} of margin, liquidated"
            f" at {position['liquidation_price']} USD."
        )

    async def liquidate(self) -> str:
        """The next hourly attestation finds the price in the region; both spend the commit together, at once."""
        edge = (await self.taker.call("GET", f"/positions/{self.orders['bold']}"))["liquidation_price"]
        await self.demo.control("/price", {"price": f"{edge - 1_500}"})
        view = await self.reaches(self.taker, "bold", "settled")
        await self.reaches(self.maker, "bold", "settled")
        await self.demo.control("/price", {"price": None})
        contract, paid = view["contract"], view["paid"]
        blocks = paid["height"] - contract["commit_height"]
        if paid["kind"] != "spend" or blocks >= contract["terms"]["timelocks"]["liquidation"]:
            raise Failed(f"a {paid['kind']} confirmed {blocks} blocks after the commit: nothing was spent together")
        if view["settlement"]["liquidated"] != "long":
            raise Failed(f"the bold long is settled as {view['settlement']}")
        if (paid["maker_payout"], paid["taker_payout"]) != (view["pool"], 0):
            raise Failed(f"a liquidated long is paid {paid} of {view['pool']}")
        return (
            f"The price falls to {edge - 1_500} USD. The hour's attestation, {view['settlement']['price']} USD,"
            f" liquidates the bold long: its commit goes out, and {blocks} blocks later both have spent it together, in"
            f" {paid['txid']}; nobody waits for a lock. The margin is gone, the maker gets {sats(view['pool'])}."
        )

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
            await self.reaches(self.taker, side, *OPEN)
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
        command = [
            sys.executable,
            "-m",
            "node",
            "force-close",
            self.orders["short"],
            "--yes",
            "--data",
            str(self.taker.data),
        ]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        if done.returncode != 0:
            raise Failed(f"cfdnode force-close: {done.stderr.decode()}")
        position = await self.reaches(self.taker, "short", "committed")
        contract = position["contract"]
        return (
            f"The taker force-closes the short: its commit, {contract['commit_txid']}, confirms at height"
            f" {contract['commit_height']}, and nobody's help was needed. The price of its expiry will settle it."
        )

    async def taker_is_killed(self) -> str:
        self.alone.write_text("cooperative_spend = false\n", encoding="utf-8")
        await self.taker.kill()
        await self.taker.start()
        told = []
        for name, state in (("long", "closed"), ("short", "committed"), ("bold", "settled")):
            await self.reaches(self.taker, name, state)
            told.append(f"the {name} is {state}")
        return (
            f"The taker's node is killed (SIGKILL) and started again: {', '.join(told)}, as before. From now on it is"
            " configured to spend no commit together, so that it must wait for the CET."
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
        position = await self.reaches(self.taker, "short", "settling", "settled")
        settlement, contract = position["settlement"], position["contract"]
        if scheme_named(contract["oracle"]).parse_event(settlement["event"])[1] != contract["expiry"]:
            raise Failed(f"the short was settled by {settlement['event']}, before its expiry")
        return f"The hour of expiry comes, and the oracle attests {settlement['price']} USD in {settlement['event']}."

    async def settled(self) -> str:
        """The commit, its lock, the CET: by the taker alone."""
        position = await self.reaches(self.taker, "short", "settled")
        contract, paid = position["contract"], position["paid"]
        blocks = paid["height"] - contract["commit_height"]
        lock = contract["terms"]["timelocks"]["settlement"]
        if paid["kind"] != "cet" or blocks < lock:
            raise Failed(f"a {paid['kind']} confirmed {blocks} blocks after the commit, whose lock is {lock} blocks")
        return (
            f"The short: the commit, {contract['commit_txid']}, confirmed at height {contract['commit_height']};"
            f" {blocks} blocks later, its lock of {lock} being over, the CET: {paid['txid']}."
        )

    async def payouts_are_right(self) -> str:
        """What is on the chain, against what the terms say for the attested price, against what the node says."""
        view = await self.taker.call("GET", f"/positions/{self.orders['short']}")
        due = due_payouts(view)
        paid = [output.nValue for output in (await self.demo.transaction(view["paid"]["txid"])).vout]
        if paid != due or sum(paid) != view["pool"]:
            raise Failed(f"the chain pays {paid}, the contract says {due} of {view['pool']}")
        if [view["paid"]["maker_payout"], view["paid"]["taker_payout"]] != paid or not view["paid"]["final"]:
            raise Failed(f"the taker says {view['paid']}, the chain pays {paid}")
        return (
            f"On the chain the short pays the maker {sats(paid[0])} and the taker {sats(paid[1])}: to the satoshi what"
            " the contract says for the attested price."
        )

    async def no_satoshi_is_missing(self) -> str:
        """The taker's wallet holds what it had, less what went into the locks, plus what it was paid."""
        expected = sum(COINS["taker"])
        fees = commits = 0
        for side in ("long", "short", "bold"):
            view = await self.taker.call("GET", f"/positions/{self.orders[side]}")
            contract = view["contract"]
            lock = await self.demo.transaction(contract["lock_txid"])
            # the maker's inputs come first, then the taker's; the same of change
            spent = await self.demo.transaction(lock.vin[-1].prevout.hash[::-1].hex())
            expected -= spent.vout[lock.vin[-1].prevout.n].nValue - lock.vout[-1].nValue
            expected += view["paid"]["taker_payout"]
            committed = contract["commit_height"] is not None
            commits += committed
            commit = [contract["commit_txid"]] * committed
            for txid in (contract["lock_txid"], *commit, view["paid"]["txid"]):
                fees += await self.demo.fee(txid)
            if len(lock.vin) != 2 or len(lock.vout) != 3:
                raise Failed(f"the {side}'s lock has {len(lock.vin)} inputs and {len(lock.vout)} outputs")

        async def adds_up() -> bool:
            return bool((await self.taker.call("GET", "/wallet"))["confirmed"] == expected)

        await self.taker.until(adds_up)
        return (
            f"The taker's wallet holds {sats(expected)}: what it had, less its parts of the locks, plus its payouts."
            f" All transactions of the three positions cost {fees} sat of fees and {commits * ANCHOR} sat of anchors,"
            " and no other satoshi left the two traders."
        )


async def is_up(node: Node) -> str:
    health = await healthy(node)
    return f"The {node.name}: {len(health['services'])} services, all healthy; its API is at {node.url}."


def sats(amount: int) -> str:
    return f"{amount:,} sat".replace(",", " ")
