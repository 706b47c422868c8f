"""Rollovers between nodes as they are built for real, on the simulator's clock and wires (tests/simulation): by
schedule, cut at every message, refused for every reason; and once over TCP, through the API."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from attrs import Factory, define
from structlog.testing import capture_logs

from node.cli import main
from node.desk import Said, SetRate
from node.errors import Conflict, NotFound
from node.eventstore.memory import MemoryBackend
from node.network.conversation import Host, speak
from node.oracle.server import Behaviour, Mode
from node.policy import Policy
from node.position.state import Position, State
from node.rollover import BEGIN_EVERY
from node.schedule import TRY_EVERY
from protocols import rollover
from protocols.contract.payout import Payout
from protocols.contract.rolling import START_FROM, funding_for
from protocols.contract.schedule import HOUR as CALENDAR_HOUR
from protocols.contract.symbols import SYMBOLS
from protocols.contract.terms import Role
from protocols.dialogue import Send, receive
from protocols.errors import Refused, WorldError
from protocols.rollover import ProposeRollover, RolloverTerms
from tests.setups import OFFER
from tests.simulation.faults import Fault, Faults, Step
from tests.simulation.run import quick
from tests.simulation.scenarios import ROLLOVER, Story
from tests.simulation.world import EPOCH, HOUR, Player, World, copied_chain
from tests.test_node import market

RATE = OFFER.funding_rate
MESSAGES = (
    ("taker", "propose_rollover"),
    ("maker", "rollover_terms"),
    ("taker", "taker_signatures"),
    ("maker", "maker_commit"),
    ("taker", "revocation"),
    ("maker", "revocation"),
)


@define(eq=False)
class Rolling(Story):
    """A story, and every message of a rollover that left a node in it."""

    sent: dict[tuple[str, str, bytes], list[dict[str, Any]]] = Factory(lambda: defaultdict(list))
    """By sender, type, and the taker's publish point of the attempt."""
    on_message: Callable[[Step], None] = lambda _: None
    _attempt: bytes = b""

    def listen(self) -> None:
        for name in self.world.players:
            self.world.faults.deceits[name] = self._note

    def _note(self, step: Step, message: dict[str, Any]) -> None:
        if step.what != ROLLOVER:
            return
        if step.name == "propose_rollover":
            self._attempt = message["publish"]
        self.sent[step.node, step.name, self._attempt].append(message)
        self.on_message(step)

    def both(self, order_id: bytes) -> tuple[Position, Position]:
        """The maker's record, and the taker's."""
        making, taking = (self.position(player, order_id) for player in (self.maker, self.taker))
        assert making is not None
        assert taking is not None
        return making, taking

    async def one(self, symbol: str = "BTCUSD") -> bytes:
        """A position that is open on both sides."""
        offer = await self.offer(self.maker, symbol=symbol)
        assert offer is not None
        order_id = await self.order(self.taker, offer, offer.lot * 10)
        assert await self.opened(order_id)
        assert order_id is not None
        return order_id

    async def rolled(self, order_id: bytes, index: int, within: float = 4 * HOUR) -> tuple[Position, Position]:
        """Both records once contract `index` stands alone."""

        def there() -> bool:
            found = [self.position(player, order_id) for player in (self.maker, self.taker)]
            return all(each is not None and min(each.own_revoked, len(each.peer_secrets)) >= index for each in found)

        assert await self.until(there, within), [self.position(self.taker, order_id)]
        return self.both(order_id)

    async def refused(self, order_id: bytes, code: str) -> str:
        """The reason that the taker's user is shown, once it has this code."""

        def there() -> bool:
            found = self.position(self.taker, order_id)
            return found is not None and found.rollover_refusal is not None and found.rollover_refusal[0] == code

        assert await self.until(there, 4 * HOUR), self.both(order_id)[1].rollover_refusal
        refusal = self.both(order_id)[1].rollover_refusal
        assert refusal is not None
        return refusal[1]

    def shown(self, order_id: bytes) -> dict[str, Any]:
        return self.taker.taker.schedule.view(self.both(order_id)[1])


@asynccontextmanager
async def playing(*, roll: bool = True, faults: Faults | None = None) -> AsyncIterator[Rolling]:
    """A maker and a taker."""
    started = trio.current_time()
    with quick(), copied_chain(lambda: EPOCH + trio.current_time() - started) as chain:
        async with trio.open_nursery() as nursery:
            world = World(0, chain, nursery, faults or Faults(), started)
            nursery.start_soon(world.mine_on_schedule)
            world.add("maker")
            world.add("taker", "maker", roll=roll)
            story = Rolling(world)
            story.listen()
            with capture_logs() as logs:
                yield story
            world.over = True
            assert world.bugs == []
            assert [each["event"] for each in logs if each["log_level"] in ("error", "critical")] == []
            nursery.cancel_scope.cancel()


def expiry(position: Position) -> int:
    return position.plan().announcements[-1].time


def points(position: Position) -> set[bytes]:
    """The publish and revoke points of every contract that was signed."""
    parties = [party for each in position.attempts for party in (each.own, each.peer) if party is not None]
    return {point for party in parties for point in (party.points.publish, party.points.revoke)}


# --- by itself --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", SYMBOLS)
async def test_a_position_rolls_over_by_itself_again_and_again(autojump_clock: object, symbol: str) -> None:
    async with playing() as story:
        order_id = await story.one(symbol)
        making, taking = before, _ = story.both(order_id)
        for index in (1, 2):
            making, taking = await story.rolled(order_id, index)
            assert taking.plan() == making.plan()
            assert (taking.state, making.state, taking.plan().index) == (State.OPEN, State.OPEN, index)
            hours = (expiry(taking) - expiry(before)) // CALENDAR_HOUR
            assert 1 <= hours <= 2
            assert before.terms is not None
            assert taking.terms is not None
            funding = funding_for(before.terms, taking.attempts[index].funding_rate, hours)
            assert taking.terms.maker_account == before.terms.maker_account + funding
            assert story.world.now() - EPOCH > (expiry(before) - START_FROM - EPOCH) * HOUR / CALENDAR_HOUR
            before = taking
        assert len(points(taking)) == len(points(making)) == 3 * 4
        assert taking.rollover_refusal is None


async def test_all_positions_roll_over_at_once_and_not_in_the_same_instant(autojump_clock: object) -> None:
    """More than the taker does at a time, and more than the maker takes from one peer."""
    async with playing(roll=False) as story:
        orders = [await story.one() for _ in range(10)]
        began: list[float] = []

        def note(step: Step) -> None:
            if step.name == "propose_rollover":
                began.append(trio.current_time())

        story.on_message = note
        schedule = story.taker.taker.schedule
        schedule.table = schedule.table.model_copy(update={"auto": True})
        for order_id in orders:
            _, taking = await story.rolled(order_id, 1)
            assert taking.state is State.OPEN
        assert len(set(began[:10])) > 5


async def test_after_a_rollover_the_new_contract_pays(autojump_clock: object) -> None:
    async with playing() as story:
        order_id = await story.one()
        _, taking = await story.rolled(order_id, 1)
        schedule = story.taker.taker.schedule
        schedule.table = schedule.table.model_copy(update={"auto": False})
        await story.force_close(story.taker, order_id)
        story.world.set_price(57_000)
        terms, settles = taking.terms, taking.plan().announcements[-1]

        def ended() -> bool:
            return all(each.ended for each in story.both(order_id))

        assert await story.until(ended, 40 * HOUR)
        making, taking = story.both(order_id)
        assert taking.ending == making.ending
        assert taking.ending is not None
        assert taking.attested is not None
        assert (taking.attested.price, taking.plan().announcements[-1]) == (57_000, settles)
        assert terms is not None
        outcome = next(
            each
            for each in taking.transactions().outcomes
            if each.event == taking.attested.event and each.low <= 57_000 <= each.high
        )
        payout = Payout(terms).split(outcome.long)
        assert (taking.ending.maker_payout, taking.ending.taker_payout) == (payout[Role.MAKER], payout[Role.TAKER])


# --- cut --------------------------------------------------------------------------------------------------------------


async def through_all_messages(strike: Callable[[Rolling, Step], Fault | None]) -> None:
    """One rollover after the other, each struck at another message, and finished all the same."""
    faults = Faults()
    async with playing(faults=faults) as story:
        order_id = await story.one()
        making, taking = story.both(order_id)
        waiting: list[tuple[str, str]] = []

        def draw(step: Step) -> Fault | None:
            if step.what != ROLLOVER or waiting != [(step.node, step.name)]:
                return None
            waiting.clear()
            return strike(story, step)

        faults.draw = draw
        for index, message in enumerate(MESSAGES, 1):
            waiting[:] = [message]
            making, taking = await story.rolled(order_id, index)
            assert waiting == []
            assert taking.plan() == making.plan()
            assert (taking.state, making.state) == (State.OPEN, State.OPEN)
        assert len(points(taking)) == 7 * 4
        signed = {each.own.points.publish for each in taking.attempts}
        for (_, name, attempt), messages in story.sent.items():
            if attempt in signed:
                assert all(each == messages[0] for each in messages), name


async def test_a_rollover_cut_before_any_message_is_finished_with_the_same_bytes(autojump_clock: object) -> None:
    await through_all_messages(lambda *_: Fault.CUT_BEFORE)


async def test_a_rollover_is_finished_whoever_begins_anew_when_a_message_arrived(autojump_clock: object) -> None:
    def crash_receiver(story: Rolling, step: Step) -> Fault:
        player = story.maker if step.node == "taker" else story.taker
        assert player.life is not None
        story.world.nursery.start_soon(crash_soon, player)
        return Fault.CRASH_AFTER

    await through_all_messages(crash_receiver)


async def crash_soon(player: Player) -> None:
    await trio.sleep(0.001)
    assert player.life is not None
    player.life.crash()


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [Fault.CUT_AFTER, Fault.DROP, Fault.TWICE, Fault.DELAY, Fault.CRASH_BEFORE, Fault.CRASH_AFTER]
)
async def test_a_rollover_is_finished_after(autojump_clock: object, fault: Fault) -> None:
    await through_all_messages(lambda *_: fault)


async def test_a_maker_that_is_silent_after_the_takers_signature_loses_the_position(autojump_clock: object) -> None:
    """The ransom: the taker publishes what it has when there is half an hour left."""
    faults = Faults()
    async with playing(faults=faults) as story:
        order_id = await story.one()
        faults.draw = lambda step: Fault.SILENT if step.name == "maker_commit" else None
        assert await story.until(lambda: story.both(order_id)[1].publishing is not None, 25 * HOUR)
        _, taking = story.both(order_id)
        assert taking.publishing is not None
        assert (taking.publishing.index, taking.own_revoked) == (0, 0)
        assert "was not finished" in taking.publishing.reason
        assert 0 < taking.plan(0).announcements[-1].time - story.world.clock.calendar() <= 1_800


# --- refused ----------------------------------------------------------------------------------------------------------


async def test_what_the_maker_refuses_is_shown_and_tried_again(autojump_clock: object) -> None:
    async with playing() as story:
        order_id = await story.one()
        desk = story.maker.maker.desk
        desk.rates["BTCUSD"] = SetRate("0.0004", story.world.now() - 2 * desk.policy.rate_max_age)
        assert "older than it allows" in await story.refused(order_id, "stale_rate")
        assert story.shown(order_id)["next_try"] is not None
        desk.rates["BTCUSD"] = SetRate("0.0004", story.world.now())
        _, taking = await story.rolled(order_id, 1)
        assert taking.attempts[1].funding_rate == "0.0004"
        assert taking.rollover_refusal is None

        desk.policy = desk.policy.changed(Policy(accept_rollovers="manual"))
        assert "did not decide" in await story.refused(order_id, "no_decision")


async def test_a_maker_that_publishes_says_so_and_keeps_no_attempt(autojump_clock: object) -> None:
    async with playing(roll=False) as story:
        order_id = await story.one()
        await story.hour(2.5)
        story.maker.maker.core.supervisor["contracts"].stop()  # the taker sees no commit
        await story.force_close(story.maker, order_id)
        story.taker.taker.roll_over(order_id)
        assert "a commit is out" in await story.refused(order_id, "commit_out")
        making, _ = story.both(order_id)
        assert (making.begun, len(making.attempts)) == ((), 1)


async def test_a_rate_beyond_the_takers_bound_is_refused(autojump_clock: object) -> None:
    """By default ten times the opening's 0.001, but no more than 0.005."""
    async with playing() as story:
        order_id = await story.one()
        desk = story.maker.maker.desk
        desk.rates["BTCUSD"] = SetRate("-0.006", story.world.now())
        assert "-0.006" in await story.refused(order_id, "bad_funding_rate")
        making, taking = story.both(order_id)
        assert (len(making.attempts), len(taking.attempts)) == (1, 1)
        schedule = story.taker.taker.schedule
        schedule.table = schedule.table.model_copy(update={"max_rate": "0.01"})
        _, taking = await story.rolled(order_id, 1)
        assert taking.attempts[1].funding_rate == "-0.006"


async def test_no_rollover_without_a_quote(autojump_clock: object) -> None:
    async with playing() as story:
        order_id = await story.one()
        feed = story.taker.taker.core.feeds["BTCUSD"]
        feed.stale_after = -1.0
        await _nothing_is_begun(story, order_id, "there is no fresh quote of BTCUSD")
        feed.stale_after = 120.0
        await story.rolled(order_id, 1)


async def test_no_rollover_while_the_oracle_does_not_answer(autojump_clock: object) -> None:
    """Neither by itself nor at the user's word, and nothing of it reaches the maker."""
    async with playing() as story:
        order_id = await story.one()
        story.world.oracle.behaviour = Behaviour(Mode.SILENT)
        await _nothing_is_begun(story, order_id, "trading from this oracle is paused until it answers again: ")
        story.world.oracle.behaviour = Behaviour()
        await story.rolled(order_id, 1)


async def _nothing_is_begun(story: Rolling, order_id: bytes, reason: str) -> None:
    calendar = story.world.clock.calendar
    assert await story.until(lambda: calendar() > story.shown(order_id)["from"] + TRY_EVERY, 24 * HOUR)
    assert reason in story.shown(order_id)["reason"]
    assert story.sent == {}
    assert all(len(each.attempts) == 1 and each.rollover_refusal is None for each in story.both(order_id))
    with pytest.raises(WorldError, match=reason):
        story.taker.taker.roll_over(order_id)


async def test_an_event_that_is_past_is_waited_for_ten_minutes(autojump_clock: object) -> None:
    async with playing() as story:
        order_id = await story.one()
        story.world.oracle.behaviour = Behaviour(Mode.LATE, late=10 * CALENDAR_HOUR)
        sentence = await story.refused(order_id, "not_attested")
        assert "past and not attested" in sentence
        since = story.world.clock.calendar()
        making, taking = await story.rolled(order_id, 1)
        assert story.world.clock.calendar() - since < CALENDAR_HOUR
        assert (making.state, taking.state) == (State.OPEN, State.OPEN)


@pytest.mark.parametrize(("late", "signed"), [("rollover_terms", 1), ("taker_signatures", 2)])
async def test_an_event_that_comes_while_a_rollover_is_agreed_on(
    autojump_clock: object, late: str, signed: int
) -> None:
    """The side that is about to sign waits for its outcome; when it is known, the rollover is finished."""
    faults = Faults(draw=lambda step: Fault.DELAY if step.name == late else None)
    async with playing(roll=False, faults=faults) as story:
        order_id = await story.one()
        await story.hour(2.17)  # runs begin ten minutes past an hour, and the message is late by three quarters of one
        story.taker.taker.roll_over(order_id)
        story.world.oracle.behaviour = Behaviour(Mode.LATE, late=10 * CALENDAR_HOUR)
        await story.refused(order_id, "not_attested")
        making, taking = story.both(order_id)
        assert (len(making.attempts), len(taking.attempts)) == (1, signed)
        assert [len(making.begun), len(taking.begun)] == [1, 1 if signed == 1 else 0]
        faults.draw = lambda _: None
        story.world.oracle.behaviour = Behaviour()
        if signed == 1:
            story.taker.taker.roll_over(order_id)
        making, taking = await story.rolled(order_id, 1)
        assert making.plan() == taking.plan()


async def test_nothing_is_signed_when_too_little_time_is_left(autojump_clock: object) -> None:
    faults = Faults(draw=lambda step: Fault.DELAY if step.name == "rollover_terms" else None)
    async with playing(roll=False, faults=faults) as story:
        order_id = await story.one()
        _, taking = story.both(order_id)
        await story.hour((expiry(taking) - EPOCH) / CALENDAR_HOUR - 1.1)
        story.taker.taker.roll_over(order_id)
        assert "too little to finish" in await story.refused(order_id, "too_late")
        making, taking = story.both(order_id)
        assert len(making.attempts) == len(taking.attempts) == 1


async def test_a_position_rolls_over_once_at_a_time(autojump_clock: object) -> None:
    """Whatever a taker asks for."""
    async with playing(roll=False) as story:
        order_id = await story.one()
        await story.hour(2.5)
        desk = story.maker.maker.desk
        desk.policy = desk.policy.changed(Policy(accept_rollovers="manual"))
        story.taker.taker.roll_over(order_id)
        assert await story.until(lambda: bool(desk.waiting))
        node, (connection,) = story.taker.taker.schedule.node, story.taker.taker.connections.values()
        dialogue, host = await node.taker(story.both(order_id)[1], None)
        with pytest.raises(Refused) as refused:
            await speak(connection, rollover.PROTOCOL, dialogue, host)
        assert refused.value.code == "busy"
        (request,) = desk.waiting.values()
        desk.accept(request.id, Said(funding_rate="0.002", price="54100"))
        _, taking = await story.rolled(order_id, 1)
        assert taking.terms is not None
        assert (taking.attempts[1].funding_rate, taking.terms.reference) == ("0.002", "54100")


async def test_nothing_is_signed_once_an_event_decided_the_contract(autojump_clock: object) -> None:
    """Even when the keeper of attestations has not heard of it yet."""
    async with playing(roll=False) as story:
        order_id = await story.one()
        for player in (story.maker, story.taker):
            assert player.life is not None
            player.life.node.core.supervisor["attestations"].stop()
        story.world.set_price(30_000)
        await story.hour(2.02)
        story.world.set_price(54_000)
        await story.hour(2.1)
        story.taker.taker.roll_over(order_id)
        assert "pays out" in await story.refused(order_id, "decided")
        assert len(story.both(order_id)[1].attempts) == 1


# --- at the user's word -----------------------------------------------------------------------------------------------


async def test_the_users_word_is_refused_with_the_reason(autojump_clock: object) -> None:
    async with playing(roll=False) as story:
        order_id = await story.one()
        taker = story.taker.taker

        def refusal() -> str:
            with pytest.raises(Conflict) as refused:
                taker.roll_over(order_id)
            return refused.value.code

        with pytest.raises(NotFound):
            taker.roll_over(bytes(16))
        assert refusal() == "too_early"
        shown = story.shown(order_id)
        assert shown["next_try"] is None
        assert "rollover.auto" in shown["reason"]
        _, taking = story.both(order_id)
        assert (shown["from"], shown["until"]) == (expiry(taking) - START_FROM, expiry(taking) - CALENDAR_HOUR)
        assert taking.terms is not None
        hours = shown["estimate"]["hours"]
        assert shown["estimate"]["funding"] == -funding_for(taking.terms, RATE, hours)
        await story.hour(3)
        taker.roll_over(order_id)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert refusal() == "busy"
        await story.rolled(order_id, 1)
        await story.force_close(story.taker, order_id)
        assert refusal() == "commit_out"


async def test_a_maker_begins_no_attempt_a_moment_after_the_last_one(autojump_clock: object) -> None:
    """Each is on its disk for ever."""
    async with playing(roll=False) as story:
        order_id = await story.one()
        await story.hour(2.5)
        node = story.taker.taker.schedule.node
        (connection,) = story.taker.taker.connections.values()
        standing = await node.standing(story.both(order_id)[1], 0)

        async def propose() -> RolloverTerms:
            own = node.begin(standing).keys.points
            await Send(ProposeRollover(order_id, 0, own.publish, own.revoke))
            return await receive(RolloverTerms, within=60)

        first = await speak(connection, rollover.PROTOCOL, propose(), Host())
        while story.maker.maker.rollover.under_way(order_id):  # noqa: ASYNC110  until it has seen that nobody goes on
            await trio.sleep(0.01)
        with pytest.raises(Refused) as refused:
            await speak(connection, rollover.PROTOCOL, propose(), Host())
        assert refused.value.code == "too_often"
        await trio.sleep(BEGIN_EVERY * HOUR / CALENDAR_HOUR)
        second = await speak(connection, rollover.PROTOCOL, propose(), Host())
        assert second.event_ids == first.event_ids
        assert {first.publish, first.revoke}.isdisjoint({second.publish, second.revoke})
        assert len(story.both(order_id)[0].begun) == 2


async def test_nobody_but_its_taker_rolls_a_position_over(autojump_clock: object) -> None:
    async with playing(roll=False) as story:
        order_id = await story.one()
        await story.hour(2.5)
        story.world.add("taker-2", "maker")
        stranger = story.player("taker-2")
        assert await story.until(lambda: stranger.up and bool(stranger.taker.connections))
        (connection,) = stranger.taker.connections.values()
        point = story.both(order_id)[1].attempts[0].own.points.fund

        async def propose() -> RolloverTerms:
            await Send(ProposeRollover(order_id, 0, point, point))
            return await receive(RolloverTerms, within=60)

        with pytest.raises(Refused) as refused:
            await speak(connection, rollover.PROTOCOL, propose(), Host())
        assert refused.value.code == "unknown_contract"


# --- a record that is too old -----------------------------------------------------------------------------------------


def copied(disk: MemoryBackend) -> MemoryBackend:
    """As it is now, to be put back."""
    made = copy.copy(disk)
    vars(made).update({name: copy.copy(value) for name, value in vars(disk).items() if isinstance(value, dict | list)})
    made._streams = {name: list(events) for name, events in disk._streams.items()}
    return made


@pytest.mark.parametrize("who", ["taker", "maker"])
async def test_a_node_that_was_restored_learns_that_its_record_is_too_old(autojump_clock: object, who: str) -> None:
    async with playing() as story:
        order_id = await story.one()
        player = story.player(who)
        platters, backup = copied(player.platters), dict(player.backup.kept)
        await story.rolled(order_id, 1)
        assert player.life is not None
        player.life.end()
        player.platters, player.backup.kept = platters, backup
        player.begin()

        def recovered() -> bool:
            position = story.position(player, order_id)
            return position is not None and position.recovered

        assert await story.until(recovered)
        other = story.position(story.maker if who == "taker" else story.taker, order_id)
        assert other is not None
        assert not other.recovered
        if who == "taker":
            assert "may be older" in story.shown(order_id)["reason"]
            assert story.shown(order_id)["next_try"] is None


# --- over TCP ---------------------------------------------------------------------------------------------------------


async def test_a_rollover_over_tcp_by_the_command_line_and_in_the_api(tmp_path: Path, capsys: Any) -> None:
    async with market(tmp_path, hour=3.0) as this:
        order_id = await this.order()
        _, taking = await this.both(order_id, "opening")
        await this.confirm(taking["contract"]["lock_txid"])
        making, taking = await this.both(order_id, "open")
        shown, before = taking["rollover"], taking["contract"]["expiry"]
        assert (shown["from"], shown["until"]) == (before - START_FROM, before - CALENDAR_HOUR)
        assert "rollover.auto" in shown["reason"]
        assert making["rollover"]["refusal"] is None
        early = await this.taker.post(f"/positions/{order_id}/rollover")
        assert (early.status_code, early.json()["code"]) == (409, "too_early")
        unknown = await this.taker.post(f"/positions/{'00' * 16}/rollover")
        assert unknown.status_code == 404
        assert (await this.maker.post(f"/positions/{order_id}/rollover")).status_code == 409

        arguments = ["rollover", order_id, "--data", str(this.taker.core.config.data)]

        async def asked() -> bool:
            return await trio.to_thread.run_sync(main, arguments) == 0

        await this.taker.sees(asked)
        assert "the maker is asked" in capsys.readouterr().out

        async def rolled() -> Any:
            views = [await node.position(order_id) for node in (this.maker, this.taker)]
            done = all(view["rollover"]["own_revoked"] == view["rollover"]["peer_revoked"] == 1 for view in views)
            return views if done else None

        making, taking = await this.taker.sees(rolled)
        assert taking["contract"] == making["contract"] | {"broadcasts": taking["contract"]["broadcasts"]}
        hours, odd = divmod(taking["contract"]["expiry"] - before, CALENDAR_HOUR)
        assert odd == 0
        assert hours > 0
        funding = -(-making["margin"] * hours // 24_000)  # the maker is short, the rate is 0.001: the long pays
        assert making["account"] == -taking["account"] == 1_000 + 2_000 + funding
        assert taking["rollover"]["refusal"] is None
