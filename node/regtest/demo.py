"""``scripts/demo``: a world, a maker and a taker as three processes, and one whole trade told as a story.

Everything it knows it learned as a user would: through the nodes' HTTP APIs, the command line and the chain. What the
contract must pay it computes for itself from the terms.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import trio
from attrs import Factory, asdict, define, field, frozen
from bitcoin.core import CTransaction

from node.clock import Clock
from protocols.contract.oracle import scheme_named
from protocols.contract.outcomes import covering, settlement_outcomes
from protocols.contract.payout import Payout
from protocols.contract.terms import Role, Side, Terms, Timelocks

FUNDS = {"maker": 300_000_000, "taker": 100_000_000}
LIMIT, QUANTITY, LEVERAGE = 5_000, 1_000, 2
PATIENCE = 60.0
"""Seconds that anything but waiting for expiry may take."""
WIDTH = 96


class DemoFailed(Exception):
    """Something did not come true; the text says what."""


@frozen
class Step:
    name: str
    passed: bool
    seconds: float
    detail: str


@define(eq=False)
class Node:
    """One of the three processes."""

    name: str
    data: Path
    process: trio.Process
    log: Path
    http: httpx2.AsyncClient = field(repr=False)
    url: str = ""
    _token: str = field(default="", repr=False)

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """The API's answer; DemoFailed with the problem's sentence if it refuses."""
        response = await self.answer(method, path, body)
        if response.status_code >= 400:
            raise DemoFailed(f"{self.name}: {method} {path}: {response.json().get('detail', response.text)}")
        return response.json()

    async def answer(self, method: str, path: str, body: object = None) -> httpx2.Response:
        if not self.url:
            self.url = (self.data / "api.url").read_text().strip()
            self._token = (self.data / "api.token").read_text().strip()
        headers = {"Authorization": f"Bearer {self._token}"}
        return await self.http.request(method, self.url + "/api/v1" + path, json=body, headers=headers)


@define(eq=False)
class Demo:
    """The story, its steps, and how long each took."""

    folder: Path
    hour: float
    http: httpx2.AsyncClient
    steps: list[Step] = Factory(list)
    _began: float = Factory(time.monotonic)
    _control: str = ""
    _calendar: Clock = Factory(Clock)

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
            raise DemoFailed(f"{name}: it did not happen within {within:.0f} s") from None
        except DemoFailed as error:
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

    # --- the three processes ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, name: str, *arguments: str) -> AsyncIterator[Node]:
        """One `cfdnode` process, ended at the end of the block."""
        data, log = self.folder / name, self.folder / f"{name}.log"
        command = [sys.executable, "-m", "node", *arguments, "--data", str(data)]
        # a session of its own: an interrupt at the terminal is for the demo, which then ends its children in order
        with log.open("wb") as output:
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            yield Node(name, data, process, log, self.http)
        finally:
            with trio.CancelScope(shield=True):
                process.terminate()
                with trio.move_on_after(10):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def until(self, node: Node, question: Callable[[], Awaitable[bool]]) -> None:
        """Ask again and again, for as long as the process lives."""
        while True:
            if node.process.returncode is not None:
                raise DemoFailed(f"{node.name} ended with status {node.process.returncode}; see {node.log}")
            try:
                if await question():
                    return
            except (httpx2.TransportError, FileNotFoundError):
                pass  # not up yet
            await trio.sleep(0.1)

    async def control(self, path: str, body: object = None) -> Any:
        response = await self.http.request("GET" if body is None else "POST", self._control + path, json=body)
        if response.status_code >= 400:
            raise DemoFailed(f"the world: {path}: {response.text}")
        return response.json()

    async def transaction(self, txid: str) -> CTransaction:
        """As it stands in the world's chain."""
        return CTransaction.deserialize(bytes.fromhex((await self.control(f"/tx/{txid}"))["hex"]))

    async def fee(self, txid: str) -> int:
        """What a transaction leaves to the miners, in satoshis."""
        tx = await self.transaction(txid)
        fee = 0
        for spent in tx.vin:
            parent = await self.transaction(spent.prevout.hash[::-1].hex())
            fee += parent.vout[spent.prevout.n].nValue
        for output in tx.vout:
            fee -= output.nValue
        return fee

    async def world_is_up(self, world: Node) -> str:
        config = world.data / "world.toml"

        async def up() -> bool:
            if not config.exists():
                return False
            said = tomllib.loads(config.read_text())
            self._control = said["regtest"]["control"]
            self._calendar = Clock(hour=said["clock"]["hour"], anchor=said["clock"]["anchor"])
            await self.control("/state")
            return True

        await self.until(world, up)
        state = await self.control("/state")
        return (
            f"A world of its own: a regtest chain at height {state['height']}, judged by Bitcoin Core's consensus code,"
            f" behind an Electrum server; an oracle; bitcoin at {state['price']} USD; an hour takes {self.hour:g} s."
        )

    async def healthy(self, node: Node) -> dict[str, Any]:
        """The node's health once every service is healthy."""
        health: dict[str, Any] = {}

        async def all_healthy() -> bool:
            health.update(await node.call("GET", "/health"))
            return bool(health["healthy"])

        await self.until(node, all_healthy)
        return health

    # --- the trade ----------------------------------------------------------------------------------------------------

    async def fund(self, nodes: Sequence[Node]) -> str:
        told = []
        for node in nodes:
            address = (await node.call("POST", "/wallet/addresses"))["address"]
            paid = await self.control("/fund", {"address": address, "amount_sat": FUNDS[node.name]})
            told.append(f"the {node.name} gets {sats(FUNDS[node.name])} in {paid['txid']}")
        for node in nodes:

            async def funded(node: Node = node) -> bool:
                return bool((await node.call("GET", "/wallet"))["confirmed"] == FUNDS[node.name])

            await self.until(node, funded)
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

        await self.until(taker, arrived)
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
            raise DemoFailed(f"an order of {2 * LIMIT} was answered with {answer.status_code} {answer.text}")
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
        """The position once it is in one of these states. DemoFailed when it failed instead."""
        position: dict[str, Any] = {}

        async def there() -> bool:
            position.update(await node.call("GET", f"/positions/{order_id}"))
            if position["state"] in ("rejected", "setup failed"):
                raise DemoFailed(f"the position is {position['state']}: {position['refusal']['sentence']}")
            return position["state"] in states

        await self.until(node, there)
        return position

    async def lock_confirms(self, nodes: Sequence[Node], order_id: str) -> str:
        position, _ = [await self.reaches(node, order_id, "open") for node in nodes]
        contract = position["contract"]
        return f"The lock confirms at height {contract['lock_height']}. The position is open, for maker and taker."

    async def expiry_comes(self, taker: Node, order_id: str) -> str:
        position = await taker.call("GET", f"/positions/{order_id}")
        expiry = position["contract"]["expiry"]
        told = 0
        while (left := expiry - self._calendar.calendar()) > 0:
            hours = -(-left // 3600)
            if hours % 6 == 0 and hours != told:
                told = hours
                price = (await self.control("/state"))["price"]
                self.say(f"… {hours} hours to expiry, bitcoin at {price} USD.")
            await trio.sleep(min(0.25, self._calendar.wall_seconds(left)))
        position = await self.reaches(taker, order_id, "settling", "settled")
        settlement = position["settlement"]
        if scheme_named(position["contract"]["oracle"]).event_time(settlement["event"]) != expiry:
            raise DemoFailed(f"it was settled by {settlement['event']}, before its expiry")
        return f"The hour of expiry comes, and the oracle attests {settlement['price']} USD in {settlement['event']}."

    async def commit_confirms(self, nodes: Sequence[Node], order_id: str) -> str:
        for node in nodes:

            async def confirmed(node: Node = node) -> bool:
                position = await node.call("GET", f"/positions/{order_id}")
                return position["contract"]["commit_height"] is not None

            await self.until(node, confirmed)
        contract = (await nodes[0].call("GET", f"/positions/{order_id}"))["contract"]
        return f"The commit, {contract['commit_txid']}, confirms at height {contract['commit_height']}."

    async def cet_confirms(self, nodes: Sequence[Node], order_id: str) -> str:
        position, _ = [await self.reaches(node, order_id, "settled") for node in nodes]
        contract, paid = position["contract"], position["paid"]
        blocks = paid["height"] - contract["commit_height"]
        lock = contract["terms"]["timelocks"]["settlement"]
        if paid["kind"] != "cet" or blocks < lock:
            raise DemoFailed(
                f"a {paid['kind']} confirmed {blocks} blocks after the commit, whose lock is {lock} blocks"
            )
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
            raise DemoFailed(f"the chain pays {paid}, the contract says {list(due.values())} of {terms.pool}")
        for view in views:
            if [view["paid"]["maker_payout"], view["paid"]["taker_payout"]] != paid or not view["paid"]["final"]:
                raise DemoFailed(f"the {view['role']} says {view['paid']}, the chain pays {paid}")
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

        await self.until(nodes[0], adds_up)
        return (
            f"Both wallets, {fees} sat of fees and the commit's anchor of {anchor} sat add up to the"
            f" {sats(sum(FUNDS.values()))} of the start."
        )


def sats(amount: int) -> str:
    return f"{amount:,} sat".replace(",", " ")


async def tell(demo: Demo, *, once: bool) -> None:
    """The whole story. Raises DemoFailed when any of it does not come true."""
    config = str(demo.folder / "world" / "world.toml")
    async with demo.running("world", "regtest", "--hour", str(demo.hour)) as world:
        await demo.step("a world", lambda: demo.world_is_up(world))
        ports = ("--api", "127.0.0.1:0", "--config", config)
        async with demo.running("maker", "maker", *ports, "--listen", "127.0.0.1:0") as maker:
            await demo.step("the maker is up", lambda: _up(demo, maker))
            address = (await maker.call("GET", "/maker"))["address"]
            async with demo.running("taker", "taker", *ports, "--makers", address) as taker:
                await demo.step("the taker is up", lambda: _up(demo, taker))
                await _trade(demo, maker, taker)
                if not once:
                    await _stay(demo, maker, taker)


async def _up(demo: Demo, node: Node) -> str:
    health = await demo.healthy(node)
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
        except DemoFailed as error:
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
