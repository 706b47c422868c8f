"""What must have come of a story: all is over, both agree, contracts paid what they say, no satoshi is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from attrs import define
from bitcoin.core import CTxOut

from node.position.state import State
from node.regtest.processes import Failed, close_payouts, due_payouts
from node.regtest.story import COIN, COINS, FAILED, OVER, SETTLING, Story, answer, comes_true, positions
from protocols.contract.scripts import ANCHOR_SCRIPT

PAID = frozenset({State.SETTLED.value, State.CLOSED.value})
HIGHEST_FEE = 5_000
"""Satoshis that no transaction of such a trade needs to pay."""


async def came_out_right(story: Story) -> None:
    """Raises `Failed`, or TooSlowError with `story.doing`; counts the outcomes."""
    verdict = Verdict(story)
    await verdict.all_over()
    await verdict.agree()
    await verdict.coins_free()
    await verdict.money()
    verdict.no_bugs()
    for records in story.records.values():
        records.check()


@define(eq=False)
class Verdict:
    story: Story

    async def all_over(self) -> None:
        """No position stands between two states for ever."""
        story = self.story
        views = [view for node in story.nodes for view in await positions(node) if view["contract"]]
        clock, last = story.world.calendar, max(view["contract"]["expiry"] for view in views)
        await trio.sleep(max(0.0, clock.wall_seconds(last + SETTLING[1] * 3600 - clock.calendar())))
        for node in story.nodes:
            with story.within(f"the end of the {node.name}'s positions"):
                await comes_true(node, "/positions", self._over)

    def _over(self, views: list[dict[str, Any]]) -> bool:
        story = self.story
        standing = {view["order_id"]: view["state"] for view in views if view["state"] not in OVER}
        story.doing = f"{story.doing.partition(':')[0]}: {standing}"
        return not standing

    async def agree(self) -> None:
        """Every position ended for both, and in the same way; what was paid is what the contract says."""
        story = self.story
        making = {view["order_id"]: view for view in await positions(story.maker)}
        taking = {view["order_id"]: view for view in await positions(story.taker)}
        ended: dict[str | None, str] = {None: "no order was placed"}
        for order_id in making.keys() | taking.keys():
            views = [views[order_id] for views in (making, taking) if order_id in views]
            states = {view["state"] for view in views}
            if states <= FAILED:
                spent_back = any(view["refusal"]["code"] == "lock_abandoned" for view in views)
                ended[order_id] = "lock given up, coins spent back" if spent_back else "setup failed, coins free"
            elif len(views) == 2 and len(states) == 1 and states <= PAID:
                await self._paid(views)
                rolled = "rolled over and " if views[0]["contract"]["index"] else ""
                ended[order_id] = f"{rolled}{views[0]['state']}"
            else:
                told = {view["role"]: view["state"] for view in views}
                raise Failed(f"position {order_id} came out different for both: {told}")
        for kill, order in story.disturbed:
            during = "while a lock is signed" if kill.signing else f"during a {kill.scene}"
            again = ", and again" if kill.again is not None else ""
            came = "all paid as due" if kill.scene == "settlement" else ended[order]
            story.outcomes[f"{kill.victim} killed {during}{again}: {came}"] += 1

    async def _paid(self, views: Sequence[dict[str, Any]]) -> None:
        story = self.story
        order_id = views[0]["order_id"]
        if views[0]["state"] == State.CLOSED.value:
            due = close_payouts(views[0])
        else:
            # a node that was away at the time may know the CET alone; who published it knows the price
            attested = [view for view in views if view["settlement"] and view["settlement"]["price"] is not None]
            if not attested:
                raise Failed(f"position {order_id} was settled, and nobody knows at what price")
            due = due_payouts(attested[0])
        paid = [output.nValue for output in (await story.world.transaction(views[0]["paid"]["txid"])).vout]
        told = [[view["paid"]["maker_payout"], view["paid"]["taker_payout"]] for view in views]
        if paid != due or any(each != due for each in told):
            raise Failed(f"position {order_id} paid {paid}, told {told}; its contract says {due}")

    async def coins_free(self) -> None:
        """Nothing is held for positions that are over."""
        story = self.story
        for node in story.nodes:
            with story.within(f"nothing held in the wallet of the {node.name}"):
                await comes_true(
                    node,
                    "/wallet",
                    lambda wallet: not any(wallet[held] for held in ("pending", "reserved", "margin_locked")),
                )

    async def money(self) -> None:
        """Both wallets, the miners' fees and the anchors that nobody spent add up to the first coins."""
        story = self.story
        to_follow: dict[tuple[str, int], CTxOut] = {}
        for txid in story.funds:
            paid = (await story.world.transaction(txid)).vout
            to_follow |= {(txid, n): output for n, output in enumerate(paid) if output.nValue == COIN}
        seen: set[str] = set()
        fees, anchors, unspent = 0, 0, 0
        while to_follow:
            (txid, vout), output = to_follow.popitem()
            spender = (await story.world.control(f"/spender/{txid}/{vout}"))["txid"]
            if spender is None and bytes(output.scriptPubKey) == ANCHOR_SCRIPT:
                anchors += output.nValue
            elif spender is None:
                unspent += output.nValue
            elif spender not in seen:
                seen.add(spender)
                fee = await story.world.fee(spender)
                if fee > HIGHEST_FEE:
                    raise Failed(f"{spender} pays a fee of {fee} sat")
                fees += fee
                to_follow |= {
                    (spender, n): made for n, made in enumerate((await story.world.transaction(spender)).vout)
                }
        first = COINS * COIN
        if unspent + fees + anchors != 2 * first:
            raise Failed(f"unspent {unspent}, fees {fees}, anchors {anchors} sat are not the {2 * first} of the start")
        with story.within("the wallets' agreement with the chain"):
            while sum(has := [(await answer(node, "/wallet"))["confirmed"] for node in story.nodes]) != unspent:
                story.doing = f"the wallets' agreement with the chain: they say {has}, unspent there are {unspent} sat"
                await trio.sleep(0.2)
        for node, left in zip(story.nodes, has, strict=True):
            views = await positions(node)
            due = first + sum(view["paid"]["payout"] - view["margin"] for view in views if view["paid"])
            # what a close gives back of the fees that were set aside is in its payouts
            ended = [(view["paid"], view["pool"]) for view in views if view["paid"]]
            returned = sum(paid["maker_payout"] + paid["taker_payout"] - pool for paid, pool in ended)
            if not 0 <= due - left <= fees + anchors + returned:
                raise Failed(
                    f"the {node.name} has {left} sat; its contracts leave it {due} less its part of {fees} sat"
                )

    def no_bugs(self) -> None:
        """Nothing happened in any life of a node that the node did not expect."""
        story = self.story
        for node in story.nodes:
            for line in node.log.read_text(errors="replace").splitlines():
                if "[error" in line or "[critical" in line:
                    raise Failed(f"{node.log} tells of a bug: {line}")
