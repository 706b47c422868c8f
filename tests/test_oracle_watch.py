"""Who notices that an oracle attests two prices: a node that asks again, and one whose peer was told another price."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio.testing
from attrs import define, field

from node.chain.electrum import ElectrumClient, run_electrum
from node.clock import Clock
from node.errors import Conflict
from node.eventstore.interface import EventStore
from node.eventstore.memory import MemoryBackend, run_memory_store
from node.health import State as Up
from node.networks import NETWORKS
from node.oracle.client import OracleClient, OracleConfig
from node.oracle.contradictions import OracleWatch
from node.oracle.records import Announcements
from node.oracle.server import Behaviour, Mode
from node.position.book import run_positions
from node.position.state import State
from node.supervision import Service
from protocols.contract.contradictions import Contradiction, Opening, price_range
from protocols.contract.oracle import OLIVIA
from protocols.contract.outcomes import covering
from protocols.contract.terms import Role
from protocols.contract_setup import FetchAnnouncements, SignLock
from protocols.errors import LocalError
from tests.positions import PEER, attestation, facts, history
from tests.setups import ORACLE, announcement
from tests.test_keeper import Trade
from tests.worlds import Node, deal, running_world, until

Jumping = trio.testing.MockClock
ROLE = Role.MAKER
CALM, OTHER = 54_000, 55_000
LAST = 24


# --- asking again, in time that jumps ---------------------------------------------------------------------------------


@define(eq=False, slots=False)
class Nodes:
    """The positions, the oracle and the watch of one node, over a disk; the oracle attests `price` of every event."""

    disk: MemoryBackend = field(factory=MemoryBackend)
    price: int | None = CALM
    """None: it fails."""
    asked: list[tuple[float, str]] = field(factory=list)
    """Seconds since the first event, and which was asked for."""

    oracle: Service[OracleClient] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.events = [each.id for each in history(ROLE).position.plan().announcements]
        self.first = announcement(self.events[0]).time
        self.clock = Clock(wall=lambda: self.first - 10 + trio.current_time())

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.raw_path.decode()
        event = next(index for index, each in enumerate(self.events) if OLIVIA.path(each) == path)
        self.asked.append((self.clock.now() - self.first, self.events[event]))
        if self.price is None:
            return httpx2.Response(500)
        announced = announcement(self.events[event])
        body = announced.raw if self.clock.now() < announced.time else attestation(event, self.price).raw
        return httpx2.Response(200, stream=httpx2.ByteStream(body))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[OracleClient]:
        store: Service[EventStore] = Service("store", partial(run_memory_store, self.disk), clock=self.clock)
        positions = Service("positions", partial(run_positions, store), [store], clock=self.clock, raise_bugs=True)

        async def run_oracle(*, task_status: trio.TaskStatus[OracleClient]) -> None:
            config = OracleConfig("http://oracle.test", ORACLE.announcement_key, ORACLE.attestation_key, ORACLE.scheme)
            async with httpx2.AsyncClient(transport=httpx2.MockTransport(self._answer)) as http:
                client = OracleClient(config, http, clock=self.clock, store=Announcements(store), report=oracle)
                await client.load()
                task_status.started(client)
                await trio.sleep_forever()

        oracle = self.oracle = Service("oracle", run_oracle, [store], clock=self.clock)
        chain: Service[ElectrumClient] = Service("chain", partial(run_electrum, [], NETWORKS["regtest"]))  # not up
        watch = OracleWatch(positions, oracle, chain, self.clock, bytes(64))
        watching = Service("oracle-watch", watch.run, [positions, oracle], clock=self.clock, raise_bugs=True)
        async with trio.open_nursery() as nursery:
            for service in (store, positions, oracle, watching):
                nursery.start_soon(service.supervise)
            await watching.until(Up.HEALTHY)
            with positions.lent() as book:
                if not book.all():
                    for each in facts()[ROLE]:
                        await book.remember(each, PEER[ROLE])
            with oracle.lent() as client:
                yield client
            nursery.cancel_scope.cancel()

    def times(self, event: int) -> list[int]:
        """After the event, in seconds, when the oracle was asked about it."""
        return [round(at) - 3600 * event for at, name in self.asked if name == self.events[event]]


async def test_the_oracle_is_asked_again_about_every_event(autojump_clock: Jumping) -> None:
    node = Nodes()
    async with node.running() as client:
        await trio.sleep(3 * 3600)
        for event in range(2):
            assert node.times(event) == [0, 0, 60, 600, 3600][: len(node.times(event))]
        assert len(node.times(0)) == 5
        assert client.contradictions == ()
        assert node.oracle.health.state is Up.HEALTHY


@pytest.mark.parametrize(("changes_after", "noticed_after"), [(30, 60), (70, 600), (700, 3600)])
async def test_what_it_says_differently_later_is_noticed(
    autojump_clock: Jumping, changes_after: int, noticed_after: int
) -> None:
    node = Nodes()
    async with node.running() as client:
        await trio.sleep(10 + changes_after)
        node.price = OTHER
        while not client.contradictions:  # noqa: ASYNC110  the clock jumps
            await trio.sleep(1)
        (found,) = client.contradictions
        assert (found.announcement.id, found.first.price) == (node.events[0], CALM)
        assert node.clock.now() - node.first == pytest.approx(noticed_after, abs=2)
        assert node.oracle.health.state is Up.DEGRADED


async def test_it_is_asked_at_each_start(autojump_clock: Jumping) -> None:
    node = Nodes()
    async with node.running():
        await trio.sleep(30)
    node.asked.clear()
    node.price = OTHER
    async with node.running() as client:
        await trio.sleep(1)
        (found,) = client.contradictions
        assert found.first.price == CALM
        assert node.times(0)[0] in (20, 21)
        kept = await client.attestation(found.announcement)
        assert kept == found.first
    async with node.running() as client:
        assert client.contradictions == (found,)
        assert node.oracle.health.state is Up.DEGRADED
        with pytest.raises(Conflict):
            client.check_trusted()


async def test_an_oracle_that_is_away_for_a_while_is_asked_the_next_time(autojump_clock: Jumping) -> None:
    node = Nodes()
    async with node.running() as client:
        await trio.sleep(30)
        node.price = None
        await trio.sleep(60)
        node.price = OTHER
        await trio.sleep(600)
        assert client.contradictions


# --- a real world, whose oracle is told to lie ------------------------------------------------------------------------


HOUR = 1.0
FIRST, SECOND = 60_000, 45_000


@asynccontextmanager
async def settling(path: Path, *, maker_without: tuple[str, ...] = ()) -> AsyncIterator[Trade]:
    """A contract whose lock is in a block; its last event is about to be attested."""
    async with running_world(path, hour=HOUR) as world:
        world.world.market.override = str(FIRST)
        nodes = {role: Node(world, role) for role in Role}
        async with nodes[Role.MAKER].running("wallet", *maker_without), nodes[Role.TAKER].running("wallet"):
            made = await deal(world, nodes[Role.MAKER], events=2)
            for role, node in nodes.items():
                await node.remember(made.facts[role])
            this = Trade(world, nodes, made)
            await this.confirm(made.transactions.lock_txid)
            yield this


def contradictions(node: Node) -> tuple[Contradiction, ...]:
    with node.oracle.lent() as oracle:
        return oracle.contradictions


async def settle(this: Trade, price: int) -> None:
    """Block by block, until both sides are paid what the contract says for this price."""
    transactions = this.deal.transactions
    await this.confirm(transactions.commit_txid)
    outcome = covering(transactions.outcomes, 1, price)
    assert outcome is not None
    cet = transactions.cet(outcome).GetTxid()
    await this.mine(outcome.timelock(this.deal.plan.terms) - 1)
    await this.confirm(cet)
    await this.mine(2)
    await this.come_to(State.SETTLED)
    assert this.paid() == this.owed(1, price)


async def test_both_sides_notice_and_the_contract_settles_at_the_first_price(tmp_path: Path) -> None:
    async with settling(tmp_path) as this:
        await this.come_to(State.SETTLING)  # both were told the first price
        for node in this.nodes.values():
            node.setup.check_oracle()
        this.world.world.oracle.behaviour = Behaviour(Mode.CONTRADICT, price=SECOND)
        for node in this.nodes.values():
            node.supervisor["oracle-watch"].restart()  # it may have asked for the last time
        await until(lambda: all(contradictions(node) for node in this.nodes.values()))
        plan = this.deal.plan
        for role, node in this.nodes.items():
            (found, *_) = contradictions(node)
            assert found.announcement in this.deal.plan.announcements
            assert (found.first.price, price_range(found.second)) == (FIRST, (SECOND, SECOND))
            # no setup begins any more, and none that has begun is signed
            answers = node.setup.host(role, PEER[role]).answers
            events = tuple(each.id for each in plan.announcements)
            for question in FetchAnnouncements(node.setup.oracle_keys, events), SignLock(plan):
                with pytest.raises(LocalError, match="the oracle attested") as refused:
                    await answers[type(question)](question)
                assert refused.value.code == "oracle_contradicted"
        await settle(this, FIRST)


async def test_a_peers_cet_tells_what_the_peer_was_told(tmp_path: Path) -> None:
    """The maker hears of the first price only from the chain; the oracle tells it the second, and only that."""
    async with settling(tmp_path, maker_without=("attestations", "oracle-watch")) as this:
        await settle(this, FIRST)
        maker = this.nodes[Role.MAKER]
        this.world.world.oracle.behaviour = Behaviour(Mode.CONTRADICT, price=SECOND)
        maker.supervisor["oracle-watch"].start()
        await until(lambda: contradictions(maker))
        (found,) = contradictions(maker)
        assert isinstance(found.second, Opening)
        outcome = covering(this.deal.transactions.outcomes, 1, FIRST)
        assert outcome is not None
        assert (found.first.price, found.second.digits) == (SECOND, outcome.digits)


async def test_a_peers_cet_that_agrees_is_no_alarm(tmp_path: Path) -> None:
    async with settling(tmp_path, maker_without=("attestations", "oracle-watch")) as this:
        await settle(this, FIRST)
        maker = this.nodes[Role.MAKER]
        watched = maker.supervisor["oracle-watch"]
        watched.start()
        await watched.until(Up.HEALTHY)
        with trio.fail_after(20):  # what the CET tells is compared with this
            await maker.oracle.call(OracleClient.wait_attestation, this.deal.plan.announcements[-1])
        await trio.sleep(0.3)
        assert contradictions(maker) == ()


async def test_late_and_silent_oracles_attest_in_the_end(tmp_path: Path) -> None:
    async with settling(tmp_path) as this:
        oracle, event = this.world.world.oracle, this.deal.plan.announcements[-1]
        oracle.behaviour = Behaviour(Mode.SILENT)
        await until(lambda: this.world.clock.calendar() > event.time + 600)
        assert this.state(Role.TAKER) is State.OPEN
        late = this.world.clock.calendar() - event.time + 3600
        oracle.behaviour = Behaviour(Mode.LATE, late)
        await this.come_to(State.SETTLING)
        assert this.world.clock.calendar() >= event.time + late
        assert contradictions(this.nodes[Role.TAKER]) == ()
