"""Closes and cooperative spends between a maker and a taker as they are built for real, on a regtest world."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from node import cli, settling
from node.desk import Desk
from node.network.address import Identity, PeerAddress
from node.network.conversation import Host, speak
from node.network.endpoint import Endpoint
from node.position.book import Positions
from node.position.deadlines import DeadlineKeeper
from node.position.state import Position
from node.settlement import SettlementNode
from node.wallet.interface import Wallet
from protocols import settlement
from protocols.contract.closing import Close
from protocols.contract.payout import Payout
from protocols.contract.terms import REGTEST_TIMELOCKS, Role
from protocols.dialogue import Dialogue, Fact, Send, receive
from protocols.errors import Declined, Refused
from protocols.settlement import (
    AcceptSpend,
    CheckClose,
    CloseComplete,
    CloseSigned,
    ProposeSpend,
    SpendComplete,
    SpendSigned,
)
from tests.test_node import Api, Market, market
from tests.worlds import until

BID = "50000"
"""Of a world whose price is set so; to a taker that is long its closing price."""


async def opened(this: Market) -> str:
    """The order id of an open position."""
    order_id = await this.order()
    _, taking = await this.both(order_id, "opening")
    await this.confirm(taking["contract"]["lock_txid"])
    await this.both(order_id, "open")
    return order_id


async def preview(this: Market, order_id: str) -> Any:
    """Of a close that could be proposed now, and that the maker has a quote to judge by."""
    await until(lambda: this.maker.core.feeds["BTCUSD"].problem() is None)

    async def without_a_problem() -> Any:
        shown = await this.taker.get(f"/positions/{order_id}/close")
        return shown if shown["problem"] is None else None

    return await this.taker.sees(without_a_problem)


async def comes_about(this: Market, order_id: str, stage: str) -> Any:
    """The taker's view of a close, once it came so far."""

    async def there() -> Any:
        answer = await this.taker.http.get(f"/positions/{order_id}")
        closing = answer.json()["closing"] if answer.is_success else None  # its services may just begin anew
        if closing is None or closing["stage"] != stage:
            assert closing is None or closing["stage"] != "refused", closing["refusal"]
            return None
        return closing

    return await this.taker.sees(there)


def recorded(node: Api, order_id: str) -> Position:
    with node.core.positions.lent() as positions:
        position = positions.get(bytes.fromhex(order_id))
    assert position is not None
    return position


async def closed(this: Market, order_id: str) -> tuple[Any, Any]:
    """Both views, once the close is final."""
    closing = await comes_about(this, order_id, "signed")
    await this.confirm(closing["txid"], 3)
    return await this.both(order_id, "closed")


async def confirmed_balance(node: Api) -> int:
    balance = await node.core.wallet.call(Wallet.balance)
    return balance.confirmed


async def test_a_close_pays_both_exactly_what_was_shown(tmp_path: Path) -> None:
    """At a price that differs from the opening one, with fees owed, to the satoshi of contract.md. Nobody raises its
    fee here, which would be paid out of that."""
    async with market(tmp_path, hour=3600.0) as this:
        order_id = await opened(this)
        for node in (this.maker, this.taker):
            node.core.supervisor["bumping"].stop()
        this.world.world.market.override = "55000"

        async def moved() -> Any:
            shown = await this.taker.get(f"/positions/{order_id}/close")
            return shown if shown["price"] == "55000" and not shown["problem"] else None

        shown = await this.taker.sees(moved)
        theirs = this.maker.core.feeds["BTCUSD"]
        await until(lambda: theirs.quote is not None and theirs.quote.bid == "55000")
        position = recorded(this.taker, order_id)
        plan = position.plan()
        payout = Payout(plan.terms)
        assert shown["payout"] == payout.of(Role.TAKER, 55_000) == shown["margin"] + shown["account"] + shown["pnl"]
        assert shown["pnl"] > 0 > shown["account"]
        assert (shown["limit"], shown["as_of"] > 0, shown["age"] < 60) == ("54945", True, True)
        before = {node: await confirmed_balance(node) for node in (this.maker, this.taker)}

        asked = await this.taker.done(f"/positions/{order_id}/close", limit="54999.99")
        assert (asked["price"], asked["limit"]) == ("55000", "54999.99")
        making, taking = await closed(this, order_id)

        close = Close(plan, "55000")
        assert this.outputs(taking["paid"]["txid"]) == {
            bytes(output.scriptPubKey): output.nValue for output in close.tx.vout
        }
        for node, role, view in ((this.maker, Role.MAKER, making), (this.taker, Role.TAKER, taking)):
            paid = close.tx.vout[0 if role is Role.MAKER else 1].nValue
            assert view["paid"]["payout"] == paid

            async def arrived(node: Api = node, paid: int = paid) -> bool:
                return await confirmed_balance(node) == before[node] + paid

            await node.sees(arrived)
        assert taking["paid"]["payout"] == shown["paid"] == shown["payout"] + shown["fees_back"]
        assert taking["closing"]["refusal"] is None
        late = await this.taker.post(f"/positions/{order_id}/close")
        assert (late.status_code, late.json()["code"]) == (409, "not_open")


async def test_what_keeps_a_close_from_coming_about_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit, quote, the operator's word, a maker that is away: each with its reason, and the position stays open."""
    async with market(tmp_path, hour=3600.0, accept="manual") as this:
        order_id = await accepted(this)
        path = f"/positions/{order_id}/close"
        await preview(this, order_id)
        for limit, status, code in (("50000.01", 409, "beyond_limit"), ("dear", 422, "bad_value")):
            refused = await this.taker.post(path, limit=limit)
            assert (refused.status_code, refused.json()["code"]) == (status, code)
        from_maker = await this.maker.post(path)
        assert (from_maker.status_code, from_maker.json()["code"]) == (409, "takers_close")
        from_maker = await this.maker.post(f"/positions/{order_id}/rollover")
        assert (from_maker.status_code, from_maker.json()["code"]) == (409, "takers_roll_over")
        assert (await this.taker.post(f"/positions/{'0' * 32}/close")).status_code == 404

        feed = this.taker.core.feeds["BTCUSD"]
        with monkeypatch.context() as patch:
            patch.setattr(feed, "stale_after", 0.0)
            stale = await this.taker.post(path)
            assert (stale.status_code, stale.json()["code"]) == (409, "no_quote")
            assert "force close still works" in stale.json()["detail"]
            assert (await this.taker.get(path))["problem"]["code"] == "no_quote"
        assert (await this.taker.position(order_id))["closing"] is None

        async def waiting() -> Any:
            return await this.maker.get("/requests")

        async def asked() -> Any:
            return [each for each in (await waiting())["requests"] if each["kind"] == "close"]

        await preview(this, order_id)
        await this.taker.done(path)
        (request,) = await this.maker.sees(asked)
        assert (request["order_id"], request["price"]) == (order_id, BID)
        twice = await this.taker.post(path)
        assert (twice.status_code, twice.json()["code"]) == (409, "close_under_way")
        await this.maker.done(f"/requests/{request['id']}/reject", sentence="not on a Sunday")
        closing = await comes_about(this, order_id, "refused")
        assert closing["refusal"] == {"code": "declined_by_hand", "sentence": "not on a Sunday"}

        await preview(this, order_id)
        await this.taker.done(path)
        await this.maker.sees(asked)
        this.taker.core.supervisor["settlements"].restart()
        closing = await comes_about(this, order_id, "refused")
        assert closing["refusal"]["code"] == "interrupted"

        async def none() -> bool:
            return not await asked()

        await this.maker.sees(none)
        await preview(this, order_id)
        await this.taker.done(path)
        (request,) = await this.maker.sees(asked)
        with monkeypatch.context() as patch:
            patch.setattr(feed, "stale_after", 0.0)
            await this.maker.done(f"/requests/{request['id']}/accept")
            closing = await comes_about(this, order_id, "refused")
        assert closing["refusal"]["code"] == "no_quote"
        assert recorded(this.taker, order_id).closing is recorded(this.maker, order_id).closing is None

        await preview(this, order_id)
        await this.taker.done(path)
        (request,) = await this.maker.sees(asked)
        this.maker.core.supervisor["network"].stop()
        closing = await comes_about(this, order_id, "refused")
        assert closing["refusal"]["code"] == "peer_gone"
        link = next(each for each in this.taker.core.supervisor.services if each.name.startswith("maker-"))
        await until(lambda: not link.health.up)
        away = await this.taker.post(path)
        assert (away.status_code, away.json()["service"]) == (503, link.name)
        assert (await this.taker.position(order_id))["state"] == "open"


async def accepted(this: Market) -> str:
    """`opened`, with an operator who says yes."""
    order_id = await this.order()

    async def waiting() -> Any:
        return await this.maker.get("/orders")

    await this.maker.sees(waiting)
    await this.maker.done(f"/orders/{order_id}/accept")
    _, taking = await this.both(order_id, "opening")
    await this.confirm(taking["contract"]["lock_txid"])
    await this.both(order_id, "open")
    return order_id


async def test_a_stranger_learns_nothing_of_a_position(tmp_path: Path) -> None:
    """Nor does who knows all of it but the taker's key of the network."""
    async with market(tmp_path, hour=3600.0) as this:
        order_id = await opened(this)
        position = recorded(this.taker, order_id)
        setup = this.taker.core.setup
        contract = SettlementNode(setup).to_close(position)
        spend = ProposeSpend(position.id, position.transactions().commit_txid, "any", bytes(64))

        async def no_limits(_: CheckClose) -> None:
            pass

        async def propose_spend() -> None:
            await Send(spend)
            await receive(AcceptSpend, within=10)

        dialogues: list[tuple[Dialogue[Any], str]] = [
            (settlement.taker_close(contract, BID, setup.entropy), "unknown_position"),
            (propose_spend(), "unknown_commit"),
        ]
        async with trio.open_nursery() as nursery:
            stranger: Endpoint = await nursery.start(Endpoint(Identity(b"\x07" * 32)).run)
            connection = await stranger.dial(PeerAddress.parse((await this.maker.get("/maker"))["address"]))
            for dialogue, code in dialogues:
                with pytest.raises(Refused) as refusal:
                    await speak(connection, settlement.PROTOCOL, dialogue, Host(answers={CheckClose: no_limits}))
                assert refusal.value.code == code
            nursery.cancel_scope.cancel()
        assert recorded(this.maker, order_id).closing is None

        begun = evolve(position.attempts[0], index=1, commit_signature=None)
        rolling = evolve(position, attempts=(*position.attempts, begun))
        with pytest.raises(Declined) as declined:
            SettlementNode(setup).to_close(rolling)
        assert declined.value.code == "unfinished_rollover"


# --- one of the two is gone -------------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What is done, in turn, when the maker looks at the price of a close: once as it decides, and once more when the
    taker's signature is there."""
    wanted: list[Callable[[], None]] = []
    check = Desk.check_close

    def look(desk: Desk, position: Position, price: str) -> None:
        if wanted:
            wanted.pop(0)()
        check(desk, position, price)

    monkeypatch.setattr(Desk, "check_close", look)
    return wanted


def nothing() -> None:
    pass


def moved() -> None:
    raise Declined("price_moved", "it moved")


async def test_a_close_that_only_the_taker_signed_is_proposed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[Callable[[], None]]
) -> None:
    """The taker goes on by itself, with the same transaction, whatever the market does meanwhile."""
    looks += [nothing, moved, moved]
    monkeypatch.setattr(settling, "AGAIN", 1.5)
    async with market(tmp_path, hour=3600.0) as this:
        order_id = await opened(this)
        await preview(this, order_id)
        await this.taker.done(f"/positions/{order_id}/close")
        closing = await comes_about(this, order_id, "half signed")
        this.world.world.market.override = "49999"  # a new close would have another price
        shown = await preview(this, order_id)
        assert (shown["price"], shown["limit"], shown["as_of"]) == (BID, "49950", closing["signed_at"])
        again = await this.taker.done(f"/positions/{order_id}/close", limit="60000")  # the price is agreed
        assert again["price"] == BID
        making, taking = await closed(this, order_id)
        assert taking["paid"]["txid"] == making["paid"]["txid"] == closing["txid"]
        assert taking["closing"]["price"] == BID
        assert looks == []


async def test_a_half_signed_close_whose_maker_is_gone_ends_by_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[Callable[[], None]]
) -> None:
    monkeypatch.setattr("node.core.DeadlineKeeper", partial(DeadlineKeeper, close_within=1.0, every=0.2))
    async with market(tmp_path, hour=3600.0) as this:
        order_id = await opened(this)
        await preview(this, order_id)

        def gone() -> None:
            this.maker.core.supervisor["network"].stop()
            moved()

        looks += [nothing, gone]
        await this.taker.done(f"/positions/{order_id}/close")
        closing = await comes_about(this, order_id, "half signed")
        taking = await this.taker.comes_to(order_id, "force closing")
        assert "after our signature of the close" in taking["contract"]["commit_reason"]
        await this.confirm(taking["contract"]["commit_txid"])
        await this.both(order_id, "committed")
        assert not this.known(closing["txid"])


@pytest.mark.slow
async def test_a_maker_that_signed_and_died_broadcasts_the_close_when_it_is_back(
    tmp_path: Path, looks: list[Callable[[], None]]
) -> None:
    """The taker never got its signature, and sees it on the chain."""
    async with market(tmp_path, hour=3600.0) as this:
        order_id = await opened(this)
        await preview(this, order_id)

        def dies() -> None:
            for name in ("broadcaster", "network"):
                this.maker.core.supervisor[name].stop()

        looks += [nothing, dies]
        await this.taker.done(f"/positions/{order_id}/close")
        closing = await comes_about(this, order_id, "half signed")
        await until(lambda: recorded(this.maker, order_id).close_raw is not None)
        assert not this.known(closing["txid"])
        this.maker.core.supervisor["broadcaster"].start()
        making, taking = await closed(this, order_id)
        assert making["paid"]["txid"] == taking["paid"]["txid"] == closing["txid"]


async def test_a_maker_that_is_back_signs_the_same_again_and_the_taker_broadcasts(
    tmp_path: Path, looks: list[Callable[[], None]], capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, and without a look at the price. The maker broadcasts nothing this time."""
    async with market(tmp_path, hour=3600.0) as this:
        order_id = await opened(this)
        await preview(this, order_id)
        services = this.maker.core.supervisor

        def dies() -> None:
            for name in ("broadcaster", "network"):
                services[name].stop()

        looks += [nothing, dies]
        told = partial(cli.main, ["close", order_id, "--limit", "49000", "--yes", "--data", str(tmp_path / "taker")])
        assert await trio.to_thread.run_sync(told) == 0
        assert f"close at {BID}" in capsys.readouterr().out
        closing = await comes_about(this, order_id, "half signed")
        assert closing["commit_at"] == closing["signed_at"] + 600
        await until(lambda: recorded(this.maker, order_id).close_raw is not None)
        this.world.world.market.override = "40000"  # below the limit, and far from the price agreed
        looks.append(moved)
        services["network"].start()
        making, taking = await closed(this, order_id)
        assert making["paid"]["txid"] == taking["paid"]["txid"] == closing["txid"]
        assert (taking["paid"]["payout"], taking["closing"]["price"]) == (closing["pays"], BID)
        assert looks == [moved]


# --- the cooperative spend --------------------------------------------------------------------------------------------


async def attested_commit(this: Market) -> tuple[str, Any]:
    """A position that the oracle liquidates, once its commit is confirmed: order id and the taker's view."""
    order_id = await opened(this)
    await this.liquidate()
    _, taking = await this.both(order_id, "settling")
    await this.confirm(taking["contract"]["commit_txid"])
    return order_id, taking


@pytest.mark.slow
async def test_a_published_commit_is_spent_together_before_any_lock_is_over(tmp_path: Path) -> None:
    async with market(tmp_path) as this:
        order_id, taking = await attested_commit(this)

        async def spent() -> Any:
            return (await this.taker.position(order_id))["paid"]

        paid = await this.taker.sees(spent)
        assert paid["kind"] == "spend"
        await this.confirm(paid["txid"], 3)
        making, taking = await this.both(order_id, "settled")
        for view in (making, taking):
            found, promised = view["paid"], view["settlement"]
            assert (found["kind"], found["txid"], promised["spend_txid"]) == ("spend", paid["txid"], paid["txid"])
            assert found["maker_payout"] == promised["maker_payout"]
            assert found["taker_payout"] == promised["taker_payout"]
        assert taking["paid"]["height"] < taking["contract"]["commit_height"] + REGTEST_TIMELOCKS.liquidation


@pytest.mark.slow
async def test_without_the_makers_help_the_cet_pays(tmp_path: Path) -> None:
    async with market(tmp_path, cooperative_spend=False) as this:
        order_id, _ = await attested_commit(this)
        await until(lambda: recorded(this.taker, order_id).spend is not None)  # it was asked
        await this.world.world.mine_many(REGTEST_TIMELOCKS.liquidation)
        _, taking = await this.both(order_id, "settling")
        await this.confirm(taking["settlement"]["cet_txid"], 3)
        _, taking = await this.both(order_id, "settled")
        assert taking["paid"]["kind"] == "cet"
        assert recorded(this.maker, order_id).spend is None


# --- every moment at which a node may die -----------------------------------------------------------------------------

KILLED = [
    (Role.TAKER, CloseSigned, "close"),
    (Role.MAKER, CloseSigned, "close"),
    (Role.TAKER, CloseComplete, "close"),
    (Role.TAKER, SpendSigned, "spend"),
    (Role.MAKER, SpendSigned, "spend"),
    (Role.TAKER, SpendComplete, "spend"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "record", "kind"), KILLED)
async def test_a_node_that_dies_behind_a_record_finishes_what_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: Role, record: type[Fact], kind: str
) -> None:
    """Both end by the same transaction, and their users do nothing about it."""
    monkeypatch.setattr(settling, "AGAIN", 1.0)
    remember, victims = Positions.remember, set[Positions]()

    async def deadly(positions: Positions, fact: Fact, peer: bytes) -> None:
        await remember(positions, fact, peer)
        if positions in victims and isinstance(fact, record):
            victims.clear()
            for name in ("positions", "network", "broadcaster"):
                node.core.supervisor[name].restart()

    monkeypatch.setattr(Positions, "remember", deadly)
    async with market(tmp_path, hour=3600.0 if kind == "close" else 2.0) as this:
        node = this.taker if victim is Role.TAKER else this.maker
        order_id = await opened(this)

        def arm() -> None:
            with node.core.positions.lent() as positions:
                victims.add(positions)

        if kind == "close":
            await preview(this, order_id)
            arm()
            await this.taker.done(f"/positions/{order_id}/close")
            making, taking = await closed(this, order_id)
        else:
            arm()
            await this.liquidate()
            _, taking = await this.both(order_id, "settling")
            await this.confirm(taking["contract"]["commit_txid"])

            async def signed() -> Any:
                answer = await this.taker.http.get(f"/positions/{order_id}")
                return answer.json()["settlement"]["spend_txid"] if answer.is_success else None

            await this.confirm(await this.taker.sees(signed), 3)
            making, taking = await this.both(order_id, "settled")
        assert victims == set()
        assert making["paid"]["kind"] == taking["paid"]["kind"] == kind
        assert making["paid"]["txid"] == taking["paid"]["txid"]
