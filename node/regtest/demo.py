"""``scripts/demo``: a world, a maker and a taker as three processes, and a story of three positions told step by step.

Everything it knows it learned as a user would: through the nodes' HTTP APIs, the command line and the chain.
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
from functools import partial
from pathlib import Path

import httpx2
import trio
from attrs import Factory, asdict, define, frozen

from node.regtest.processes import Failed, Node, Processes, end_in_order, healthy
from node.regtest.scenes import Trade, is_up

STALE_AFTER = 3
"""Seconds after which a quote is stale here; two minutes are too long for a story."""
PATIENCE = 60.0
"""Seconds that anything but waiting for expiry may take."""
WIDTH = 96
INTERRUPTED = 130
SAID_AT_THE_DOOR = "regtest only"
"""The password of both pages: a world's coins are worth nothing."""


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

    async def world_comes_up(self, world: Node) -> str:
        await self.world_is_up(world)
        state = await self.control("/state")
        return (
            f"A world of its own: a regtest chain at height {state['height']}, judged by Bitcoin Core's consensus code,"
            f" behind an Electrum server; an oracle; an exchange with bitcoin at {state['price']} USD; an hour takes"
            f" {self.hour:g} s."
        )


async def tell(demo: Demo, *, once: bool) -> None:
    """The whole story. Raises Failed when any of it does not come true."""
    impatient = demo.folder / "demo.toml"
    impatient.write_text(f"[prices]\nstale_after = {STALE_AFTER}\n", encoding="utf-8")
    alone = demo.folder / "taker.toml"
    alone.write_text("", encoding="utf-8")
    more = ("--config", str(impatient))
    async with demo.world() as world:
        await demo.step("a world", lambda: demo.world_comes_up(world))
        async with demo.maker("maker", *more) as maker:
            await demo.step("the maker is up", lambda: is_up(maker))
            address = (await maker.call("GET", "/maker"))["address"]
            async with demo.taker(address, "taker", *more, "--config", str(alone), roll=True) as taker:
                await demo.step("the taker is up", lambda: is_up(taker))
                await demo.step("their pages", lambda: _pages(maker, taker))
                trade = Trade(demo, maker, taker, alone)
                await _trade(demo, trade)
                if not once:
                    await _stay(demo, trade)


async def _trade(demo: Demo, trade: Trade) -> None:
    await demo.step("both wallets funded", trade.fund)
    await demo.step("offers arrive", trade.offer)
    await demo.step("an order too large is refused", trade.order_too_large)
    await demo.step("a long and a short are signed", trade.order_both)
    await demo.step("both locks confirm", trade.locks_confirm)
    await demo.step("both roll over", trade.roll_over, within=6 * demo.hour + PATIENCE)
    await demo.step("the price feed goes away", trade.feed_goes_away)
    await demo.step("the price feed comes back", trade.feed_comes_back)
    await demo.step("the long is closed", trade.close)
    await demo.step("a bolder long is signed", trade.order_bold)
    await demo.step("the price falls through it", trade.liquidate, within=6 * demo.hour + PATIENCE)
    await demo.step("the maker leaves for good", trade.maker_leaves)
    await demo.step("the short is force-closed", trade.force_close)
    await demo.step("the taker is killed and started", trade.taker_is_killed)
    expiry = partial(trade.wait_for_expiry, demo.say)
    await demo.step("the oracle attests at expiry", expiry, within=30 * demo.hour + PATIENCE)
    await demo.step("the short's CET confirms", trade.settled, within=6 * demo.hour + PATIENCE)
    await demo.step("payouts equal the contracts'", trade.payouts_are_right)
    await demo.step("no satoshi is missing", trade.no_satoshi_is_missing)


async def _pages(maker: Node, taker: Node) -> str:
    for node in (maker, taker):
        answer = await node.answer("PUT", "/password", {"password": SAID_AT_THE_DOOR})
        if answer.status_code != 204:
            raise Failed(f"{node.name}: the password was answered with {answer.status_code} {answer.text}")
    return (
        f"Watch it in a browser: {taker.url} is the taker, {maker.url} the maker; the password is: {SAID_AT_THE_DOOR}"
    )


async def _stay(demo: Demo, trade: Trade) -> None:
    """Go on, with the maker back, until interrupted."""
    await trade.maker.start()
    await healthy(trade.maker)
    demo.say(
        "The world goes on until you interrupt it, and the maker is back after all. Their pages, with new ports since"
        f" both were started again: {trade.taker.url} is the taker, {trade.maker.url} the maker, the password is:"
        f" {SAID_AT_THE_DOOR}. Programs find their tokens in {trade.taker.data}/api.token and"
        f" {trade.maker.data}/api.token."
    )
    while True:
        await trade.offer()
        await trio.sleep(60)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if all of it held, 1 if not, 130 when interrupted on the way."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Three positions, and what stops on the way, on a regtest world of its own."
    )
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
    end_in_order()
    status = INTERRUPTED
    try:
        status = 0 if trio.run(_run, folder, options) else 1
        keep = keep or status != 0
    except* KeyboardInterrupt:  # out of nurseries
        print("\nended by you")
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return status


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
