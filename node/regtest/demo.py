"""``scripts/demo``: a world, a maker and a taker as three processes, and one whole trade told as a story.

Everything it knows it learned as a user would: through the nodes' HTTP APIs, the command line and the chain. What the
contract must pay it computes for itself from the terms.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import trio
from attrs import Factory, asdict, define, frozen

from node.regtest.processes import Failed, Node, Processes, healthy
from protocols.contract.oracle import scheme_named
from protocols.contract.outcomes import covering, settlement_outcomes
from protocols.contract.payout import Payout
from protocols.contract.terms import Role, Side, Terms, Timelocks

FUNDS = {"maker": 300_000_000, "taker": 100_000_000}
LIMIT, QUANTITY, LEVERAGE = 5_000, 1_000, 2
PATIENCE = 60.0
"""Seconds that anything but waiting for expiry may take."""
WIDTH = 96


@frozen
class Step:
    name: str
    passed: bool
    seconds: float
    detail: str


@define(eq=False)
class Demo(Processes):
    """The story, its steps, and how long each took."""

    steps: list[Step] = Factory(list)
    _began: float = Factory(time.monotonic)

    # --- telling ------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        at = f"{time.monotonic() - self._began:5.1f} s  "
        lines = textwrap.wrap(text, WIDTH - len(at), break_long_words=False, break_on_hyphens=False)
        print("\n".join((at if not n else " " * len(at)) + line for n, line in enumerate(lines)), flush=True)

    async def step(self, name: str, work: Callable[[], Awaitable[str]], *, within: float = PATIENCE) -> None:
        """Do one thing; what it returns is told, and stands in the table."""
        began = time.monotonic()
        try:
            with trio.fail_after(within):
                detail = await work()
        except trio.TooSlowError:
            self._record(name, False, began, f"did not happen within {within:.0f} s")
            raise Failed(f"{name}: it did not happen within {within:.0f} s") from None
        except Failed as error:
            self._record(name, False, began, str(error))
            raise
        self._record(name, True, began, detail)
        self.say(detail)

    def _record(self, name: str, passed: bool, began: float, detail: str) -> None:
        self.steps.append(Step(name, passed, round(time.monotonic() - began, 2), detail))

    def table(self) -> str:
        rows = [f"{'step':<34}{'':<5}{'seconds':>8}"]
        rows += [f"{step.name:<34}{'ok' if step.passed else 'FAIL':<5}{step.seconds:>8.1f}" for step in self.steps]
        return "\n".join(rows)

    # --- the trade ----------------------------------------------------------------------------------------------------

    async def world_comes_up(self, world: Node) -> str:
        await self.world_is_up(world)
        state = await self.control("/state")
        return (
            f"A world of its own: a regtest chain at height {state['height']}, judged by Bitcoin Core's consensus code,"
            f" behind an Electrum server; an oracle; bitcoin at {state['price']} USD; an hour takes {self.hour:g} s."
        )

    async def fund(self, nodes: Sequence[Node]) -> str:
        told = []
        for node in nodes:
            address = (await node.call("POST", "/wallet/addresses"))["address"]
            paid = await self.control("/fund", {"address": address, "amount_sat": FUNDS[node.name]})
            told.append(f"the {node.name} gets {sats(FUNDS[node.name])} in {paid['txid']}")
        for node in nodes:

            async def funded(node: Node = node) -> bool:
                return bool((await node.call("GET", "/wallet"))["confirmed"] == FUNDS[node.name])

            await node.until(funded)
        return f"Both wallets are funded: {'; '.join(told)}."

    async def make_offers(self, maker: Node) -> None:
        """Both sides, half a percent apart."""
        price = int(float((await self.control("/state"))["price"]))
        for side, offered in (("short", price + price // 400), ("long", price - price // 400)):
            offer = {"side": side, "price": str(offered), "max_quantity": LIMIT, "funding_rate": "0.0003"}
            await maker.call("POST", "/offers", {**offer, "opening_fee": 500})

    async def offers_arrive(self, maker: Node, taker: Node, seen: dict[str, Any]) -> str:
        await self.make_offers(maker)

        async def arrived() -> bool:
            offers = await taker.call("GET", "/offers")
            seen.update({offer["taker_side"]: offer for offer in offers})
            return len(seen) == 2

        await taker.until(arrived)
        return (
            "Offers arrive at the taker, over a connection encrypted by Noise, on a stream of their own: "
            + "; ".join(
                f"{side} at {offer['price']} USD, {offer['min_quantity']} to {offer['max_quantity']} contracts"
                for side, offer in sorted(seen.items())
            )
            + "."
        )

    async def too_large(self, taker: Node, offer: dict[str, Any]) -> str:
        order = {"offer_id": offer["id"], "quantity": 2 * LIMIT, "leverage": LEVERAGE}
        answer = await taker.answer("POST", "/orders", order)
        problem = answer.json()
        if answer.status_code != 422 or problem.get("field") != "quantity" or str(LIMIT) not in problem["detail"]:
            raise Failed(f"an order of {2 * LIMIT} was answered with {answer.status_code} {answer.text}")
        return f"An order of {2 * LIMIT} contracts is refused: {problem['detail']}."

    async def order(self, taker: Node, offer: dict[str, Any], placed: dict[str, Any]) -> str:
        order = {"offer_id": offer["id"], "quantity": QUANTITY, "leverage": LEVERAGE}
        placed.update(await taker.call("POST", "/orders", order))
        position = await self.reaches(taker, placed["order_id"], "opening", "open")
        contract = position["contract"]
        return (
            f"The taker goes long {QUANTITY} contracts at {position['price']} USD with leverage {LEVERAGE}: it locks"
            f" {sats(position['margin'])} of a pool of {sats(position['pool'])}, liquidated at"
            f" {position['liquidation_price']} USD. Both sign {contract['cets']} outcomes, then the lock,"
            f" {contract['lock_txid']}."
        )

    async def reaches(self, node: Node, order_id: str, *states: str) -> dict[str, Any]:
        """The position once it is in one of these states. Failed when it failed instead."""
        position: dict[str, Any] = {}

        async def there() -> bool:
            position.update(await node.call("GET", f"/positions/{order_id}"))
            if position["state"] in ("rejected", "setup failed"):
                raise Failed(f"the position is {position['state']}: {position['refusal']['sentence']}")
            return position["state"] in states

        await node.until(there)
        return position

    async def lock_confirms(self, nodes: Sequence[Node], order_id: str) -> str:
        position, _ = [await self.reaches(node, order_id, "open") for node in nodes]
        contract = position["contract"]
        return f"The lock confirms at height {contract['lock_height']}. The position is open, for maker and taker."

    async def expiry_comes(self, taker: Node, order_id: str) -> str:
        position = await taker.call("GET", f"/positions/{order_id}")
        expiry = position["contract"]["expiry"]
        told = 0
        while (left := expiry - self.calendar.calendar()) > 0:
            hours = -(-left // 3600)
            if hours % 6 == 0 and hours != told:
                told = hours
                price = (await self.control("/state"))["price"]
                self.say(f"… {hours} hours to expiry, bitcoin at {price} USD.")
            await trio.sleep(min(0.25, self.calendar.wall_seconds(left)))
        position = await self.reaches(taker, order_id, "settling", "settled")
        settlement = position["settlement"]
        if scheme_named(position["contract"]["oracle"]).event_time(settlement["event"]) != expiry:
            raise Failed(f"it was settled by {settlement['event']}, before its expiry")
        return f"The hour of expiry comes, and the oracle attests {settlement['price']} USD in {settlement['event']}."

    async def commit_confirms(self, nodes: Sequence[Node], order_id: str) -> str:
        for node in nodes:

            async def confirmed(node: Node = node) -> bool:
                position = await node.call("GET", f"/positions/{order_id}")
                return position["contract"]["commit_height"] is not None

            await node.until(confirmed)
        contract = (await nodes[0].call("GET", f"/positions/{order_id}"))["contract"]
        return f"The commit, {contract['commit_txid']}, confirms at height {contract['commit_height']}."

    async def cet_confirms(self, nodes: Sequence[Node], order_id: str) -> str:
        position, _ = [await self.reaches(node, order_id, "settled") for node in nodes]
        contract, paid = position["contract"], position["paid"]
        blocks = paid["height"] - contract["commit_height"]
        lock = contract["terms"]["timelocks"]["settlement"]
        if paid["kind"] != "cet" or blocks < lock:
            raise Failed(f"a {paid['kind']} confirmed {blocks} blocks after the commit, whose lock is {lock} blocks")
        return f"{blocks} blocks later, its lock of {lock} being over, the CET confirms: {paid['txid']}."

    async def payouts_are_right(self, nodes: Sequence[Node], order_id: str) -> str:
        """What is on the chain, against what the terms say for the attested price, against what both nodes say."""
        views = [await node.call("GET", f"/positions/{order_id}") for node in nodes]
        said = views[0]["contract"]["terms"]
        terms = Terms(
            **{
                **said,
                "maker_side": Side(said["maker_side"]),
                "timelocks": Timelocks(**said["timelocks"]),
            }
        )
        price = views[0]["settlement"]["price"]
        outcome = covering(settlement_outcomes(terms), 0, price)
        assert outcome is not None, "a settlement covers every price"
        due = Payout(terms).split(outcome.long)
        on_chain = await self.transaction(views[0]["paid"]["txid"])
        paid = [output.nValue for output in on_chain.vout]
        if paid != [due[Role.MAKER], due[Role.TAKER]] or sum(paid) != terms.pool:
            raise Failed(f"the chain pays {paid}, the contract says {list(due.values())} of {terms.pool}")
        for view in views:
            if [view["paid"]["maker_payout"], view["paid"]["taker_payout"]] != paid or not view["paid"]["final"]:
                raise Failed(f"the {view['role']} says {view['paid']}, the chain pays {paid}")
        return (
            f"On the chain the maker gets {sats(paid[0])} and the taker {sats(paid[1])}, together the pool of"
            f" {sats(terms.pool)}: to the satoshi what the contract says for {price} USD."
        )

    async def money_is_conserved(self, nodes: Sequence[Node], order_id: str) -> str:
        """Both wallets and the miners' fees add up to what was there at the start."""
        position = await nodes[0].call("GET", f"/positions/{order_id}")
        contract, fees = position["contract"], 0
        for txid in (contract["lock_txid"], contract["commit_txid"], position["paid"]["txid"]):
            fees += await self.fee(txid)
        anchor = 240  # the commit's anchor stays unspent

        async def adds_up() -> bool:
            wallets = [await node.call("GET", "/wallet") for node in nodes]
            return bool(sum(wallet["confirmed"] for wallet in wallets) + fees + anchor == sum(FUNDS.values()))

        await nodes[0].until(adds_up)
        return (
            f"Both wallets, {fees} sat of fees and the commit's anchor of {anchor} sat add up to the"
            f" {sats(sum(FUNDS.values()))} of the start."
        )


def sats(amount: int) -> str:
    return f"{amount:,} sat".replace(",", " ")


async def tell(demo: Demo, *, once: bool) -> None:
    """The whole story. Raises Failed when any of it does not come true."""
    async with demo.world() as world:
        await demo.step("a world", lambda: demo.world_comes_up(world))
        async with demo.maker() as maker:
            await demo.step("the maker is up", lambda: _up(maker))
            address = (await maker.call("GET", "/maker"))["address"]
            async with demo.taker(address) as taker:
                await demo.step("the taker is up", lambda: _up(taker))
                await _trade(demo, maker, taker)
                if not once:
                    await _stay(demo, maker, taker)


async def _up(node: Node) -> str:
    health = await healthy(node)
    return f"The {node.name}: {len(health['services'])} services, all healthy; its API is at {node.url}."


async def _trade(demo: Demo, maker: Node, taker: Node) -> None:
    both: tuple[Node, Node] = (maker, taker)
    offers: dict[str, Any] = {}
    placed: dict[str, Any] = {}
    await demo.step("both wallets funded", lambda: demo.fund(both))
    await demo.step("offers arrive", lambda: demo.offers_arrive(maker, taker, offers))
    await demo.step("an order too large is refused", lambda: demo.too_large(taker, offers["long"]))
    await demo.step("an order is accepted and signed", lambda: demo.order(taker, offers["long"], placed))
    order_id = placed["order_id"]
    await demo.step("the lock confirms", lambda: demo.lock_confirms(both, order_id))
    await demo.step(
        "the oracle attests at expiry", lambda: demo.expiry_comes(taker, order_id), within=30 * demo.hour + PATIENCE
    )
    await demo.step("the commit confirms", lambda: demo.commit_confirms(both, order_id), within=demo.hour + PATIENCE)
    await demo.step("the CET confirms", lambda: demo.cet_confirms(both, order_id), within=6 * demo.hour + PATIENCE)
    await demo.step("payouts equal the contract's", lambda: demo.payouts_are_right(both, order_id))
    await demo.step("no satoshi is missing", lambda: demo.money_is_conserved(both, order_id))


async def _stay(demo: Demo, maker: Node, taker: Node) -> None:
    """Go on, with fresh offers, until interrupted."""
    demo.say(
        f"The world goes on, with fresh offers, until you interrupt it. The APIs are at {maker.url}/api/v1 and"
        f" {taker.url}/api/v1; their tokens are in {maker.data}/api.token and {taker.data}/api.token."
    )
    while True:
        await demo.make_offers(maker)
        await trio.sleep(60)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if all of it held, 1 if not, 130 when interrupted on the way."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="A whole trade on a regtest world of its own.")
    parser.add_argument("--once", action="store_true", help="end after the trade; so it is without a terminal")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table of steps there")
    parser.add_argument("--hour", type=float, default=2.0, metavar="SECONDS", help="how long an hour takes (2)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a new directory to keep data and logs in")
    options = parser.parse_args(arguments)
    if not 1 <= options.hour <= 3600:
        parser.error(f"--hour is {options.hour:g}, allowed is 1 to 3600")
    if options.data is not None and options.data.exists() and any(options.data.iterdir()):
        parser.error(f"--data {options.data}: the directory is not empty")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: there is no such directory")
    folder = (options.data or Path(tempfile.mkdtemp(prefix="cfdnode-demo-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    keep = options.data is not None
    try:
        passed = trio.run(_run, folder, options)
        keep = keep or not passed
    except KeyboardInterrupt:
        print("\nended by you")
        return 130
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if passed else 1


async def _run(folder: Path, options: argparse.Namespace) -> bool:
    failure = ""
    async with httpx2.AsyncClient(timeout=15, trust_env=False) as http:
        demo = Demo(folder, options.hour, http)
        try:
            await tell(demo, once=options.once or not sys.stdout.isatty())
        except Failed as error:
            failure = str(error)
    print("\n" + demo.table())
    if options.json is not None:
        told = {"passed": not failure, "failure": failure, "steps": [asdict(step) for step in demo.steps]}
        options.json.write_text(json.dumps(told, indent=2) + os.linesep)
    if failure:
        print(f"\nFAILED: {failure}")
        _show_logs(folder)
        return False
    print(f"\nAll {len(demo.steps)} steps held.")
    return True


def _show_logs(folder: Path) -> None:
    for log in sorted(folder.glob("*.log")):
        print(f"\n--- the end of {log}")
        print("\n".join(log.read_text(errors="replace").splitlines()[-15:]))


if __name__ == "__main__":
    sys.exit(main())
