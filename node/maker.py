"""A maker: publishes offers, answers orders, keeps its positions."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import define, field
from bitcoin.core import CTransaction

from node import files
from node.config import MakerConfig
from node.core import Core, build
from node.desk import Desk, SetRate
from node.health import Beating, Report, stay
from node.metrics import Measured, serve_metrics
from node.network.address import PeerAddress
from node.network.connection import Connection
from node.network.conversation import Host, answering, converse, speak
from node.network.endpoint import ConnectionUp
from node.network.room import Room
from node.network.substream import Substream
from node.offer_book import OfferBook
from node.offers import OfferBoard
from node.oracle.client import OracleClient
from node.policy import Kept, Policy
from node.position.book import Positions
from node.position.state import Position
from node.projections import Projections
from node.quoting import Quoting
from node.rollover import RolloverNode
from node.seams import MACHINE, Seams
from node.settlement import SettlementNode
from node.setup import Setup
from node.shared import SharedNode
from node.start import Stage
from node.supervision import Service
from protocols import contract_setup, identify, offers, positions, rollover, settlement
from protocols.codec import Rejected
from protocols.contract.terms import Role
from protocols.contract_setup import Decide, FindOffer
from protocols.dialogue import Dialogue
from protocols.errors import CodedError, LocalError, RemoteError, WorldError
from protocols.identify import PeerRole
from protocols.offers import NextOffers, Offer
from protocols.settlement import CheckClose, DecideClose

SETUPS_PER_PEER, SETUPS = 8, 64
"""That one taker may have under way at once, and all together: each may hold coins for minutes."""
GREETINGS_PER_PEER, GREETINGS = 2, 256
ROLLOVERS_PER_PEER, ROLLOVERS = 16, 256
SETTLEMENTS_PER_PEER, SETTLEMENTS = 32, 256
"""The same; these hold nothing."""

if TYPE_CHECKING:
    from fastapi import APIRouter

log = structlog.get_logger("maker")


@define(eq=False)
class Maker:
    """What a maker has beside every node's services."""

    core: Core
    config: MakerConfig
    board: OfferBoard
    desk: Desk
    quoting: Quoting
    offers: Service[OfferBook] = field(init=False)
    listener: Service[tuple[str, int]] = field(init=False)
    rollover: RolloverNode = field(init=False)
    _settlement: SettlementNode = field(init=False)
    _setups: Room = field(init=False, factory=partial(Room, "setups", SETUPS_PER_PEER, SETUPS))
    _greetings: Room = field(init=False, factory=partial(Room, "greetings", GREETINGS_PER_PEER, GREETINGS))
    _rollovers: Room = field(init=False, factory=partial(Room, "rollovers", ROLLOVERS_PER_PEER, ROLLOVERS))
    _settlements: Room = field(init=False, factory=partial(Room, "settlements", SETTLEMENTS_PER_PEER, SETTLEMENTS))

    @classmethod
    def build(
        cls, config: MakerConfig, api_socket: socket.socket | None, seams: Seams = MACHINE, stage: Stage | None = None
    ) -> Maker:
        """Not yet running. Raises LocalError when the seed or the data directory cannot be used."""
        from node.web.close_api import maker_close_router
        from node.web.desk_api import desk_router
        from node.web.maker_api import maker_router
        from node.web.node_api import node_routers, show_lasting
        from node.web.outlook import Values
        from node.web.topics import maker_topics

        maker: Maker
        projections: Projections
        policy, measured = config.make_policy(), Measured()
        kept, problem = _kept(config.data)

        def routers(core: Core) -> list[APIRouter]:
            return [
                *node_routers(core, projections, measured),
                maker_router(maker, projections),
                desk_router(desk, policy, config.data, kept),
                maker_close_router(),
            ]

        core = build(
            config,
            api_socket,
            PeerRole.MAKER,
            routers,
            seams,
            stage=stage,
        )
        if problem:
            core.warnings.append(problem)
        desk = Desk(policy.changed(kept.changes), core.feeds, core.clock, core.setup.entropy)
        desk.rates = {symbol: SetRate(rate, since) for symbol, (rate, since) in kept.rates.items()}
        board = OfferBoard(core.clock)
        quoting = Quoting(
            core.feeds,
            board,
            core.clock,
            step=config.quote_step,
            check_ready=core.setup.check_ready,
            fee_rate=core.setup.fee_rate,
            entropy=core.setup.entropy,
        )
        maker = cls(core, config, board, desk, quoting)
        maker.rollover = RolloverNode(core.setup, core.feeds)
        maker._settlement = SettlementNode(core.setup, config.cooperative_spend)
        core.supervisor.reporting("quoting", quoting.run)
        book = OfferBook(core, config, desk, board, quoting, core.supervisor["store"])
        maker.offers = core.supervisor.reporting("offers", book.run, [core.supervisor["store"]])
        maker.listener = core.supervisor.reporting("listener", maker._listen, [core.endpoint, core.positions])
        core.supervisor.reporting("visitors", maker._meet, [core.endpoint])
        core.supervisor.reporting("oracle-trust", maker._withdraw, [core.oracle])
        projections = Projections(
            core,
            partial(maker_topics, maker, policy, Values(core)),
            lambda position: show_lasting(core, None, position, dict(core.broadcaster.status())),
        )
        if api_socket is not None or stage is not None:
            projections.serve()
            serve_metrics(core, measured)
        if stage is not None and stage.door is not None:
            stage.door.let_in(routers(core))
        return maker

    @property
    def address(self) -> PeerAddress:
        """By which takers reach this maker; the port is the real one once the listener is up."""
        host, port = self.config.listen.host, self.config.listen.port
        if self.listener.health.up:
            with self.listener.lent() as place:
                _, port = place
        if self.config.public is not None:
            host, port = self.config.public.host, self.config.public.port
        return PeerAddress(self.core.identity.public, host, port)

    async def _listen(self, *, report: Report, task_status: trio.TaskStatus[tuple[str, int]]) -> None:
        with self.core.endpoint.lent() as endpoint:
            for path, handler in (
                (offers.PROTOCOL.path, answering(offers.PROTOCOL, self._publish)),
                (positions.PROTOCOL.path, self._compare),
                (contract_setup.PROTOCOL.path, self._answer_order),
                (rollover.PROTOCOL.path, self._answer_rollover),
                (settlement.PROTOCOL.path, self._answer_settlement),
            ):
                if path not in endpoint.paths:
                    endpoint.handle(path, handler)
            host, port = self.config.listen.host, self.config.listen.port
            async with trio.open_nursery() as nursery:
                for other in self.config.listen_also:
                    await nursery.start(endpoint.serve, other.host, other.port)
                await endpoint.serve(host, port, report=report, task_status=task_status)

    async def _withdraw(self, *, report: Report, task_status: trio.TaskStatus[None]) -> None:
        """Offer nothing any more once the oracle has contradicted itself; whoever offers anew is refused."""
        task_status.started()
        distrusted = False
        while not distrusted:
            report.beat()
            with trio.move_on_after(report.beat_every):
                await self.core.oracle.call(OracleClient.wait_distrusted)
                distrusted = True
        self.board.clear_all()
        await stay(report)

    async def _meet(self, *, report: Report, task_status: trio.TaskStatus[None]) -> None:
        """Ask everybody who connects who it is."""
        with self.core.endpoint.lent() as endpoint, endpoint.connection_events() as events:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for event in Beating(report, events):
                    if isinstance(event, ConnectionUp):
                        nursery.start_soon(self._identify, event.connection)
            raise WorldError("too_many_connections", "connections came and went faster than they could be asked")

    async def _identify(self, connection: Connection) -> None:
        """Part with a peer that lives on another network; one that does not say where it lives only looks."""
        try:
            await speak(connection, identify.PROTOCOL, identify.opener(self.config.network), Host())
        except (RemoteError, LocalError) as error:
            if error.code == "wrong_network":
                log.warning("peer of another network", peer=connection.peer.short, reason=error.sentence)
                connection.part(f"this node is on {self.config.network}".encode(), error.sentence)

    def _publish(self, _: Substream) -> tuple[Dialogue[object], Host]:
        async def next_offers(ask: NextOffers) -> tuple[Offer, ...]:
            return await self.board.next_set(ask.last)

        return offers.maker(), Host(answers={NextOffers: next_offers})

    async def _compare(self, substream: Substream) -> None:
        """The positions that a taker has with us, first thing on its connection."""
        peer, told = substream.peer.key, {"peer": substream.peer.short}
        with self._greetings.taken(peer):
            try:
                host = SharedNode(self.core.setup).host(peer)
                await converse(substream, positions.PROTOCOL, positions.maker(), host)
            except CodedError as error:
                log.info("positions not compared", code=error.code, reason=error.sentence, **told)

    async def _answer_order(self, substream: Substream) -> None:
        """One setup, from its order to its end."""
        peer = substream.peer.key
        with self._setups.taken(peer):
            await self._set_up(substream, peer)

    async def _set_up(self, substream: Substream, peer: bytes) -> None:
        setup = Setup(peer)

        async def find(ask: FindOffer) -> Offer | None:
            return self.board.find(ask.offer_id)

        async def decide(ask: Decide) -> Rejected | None:
            order_id = ask.order.order_id
            known = await self.core.positions.call(Positions.known, order_id)
            with self.core.positions.lent() as positions:
                positions.check_writable()
                if known or not self.desk.begin(order_id):
                    return Rejected("order_id_known", "an order of this id was placed before")
                setup.order_id = order_id
                return await self.desk.decide_order(ask.order, peer, positions.all())

        host = self.core.setup.host(Role.MAKER, peer, {Decide: decide, FindOffer: find})
        dialogue = contract_setup.maker(self.core.setup.attempt)
        try:
            await self.core.setup.carry_out(setup, converse(substream, contract_setup.PROTOCOL, dialogue, host))
        finally:
            if setup.order_id is not None:
                self.desk.forget(setup.order_id)

    async def _answer_rollover(self, substream: Substream) -> None:
        """One rollover, begun or to be finished."""
        peer = substream.peer.key
        told = {"peer": substream.peer.short}
        with self._rollovers.taken(peer), self.rollover.maker(peer, self.desk.decide_rollover) as (dialogue, host):
            try:
                plan = await converse(substream, rollover.PROTOCOL, dialogue, host)
                log.info("rolled over", order=plan.order_id.hex(), contract=plan.index, **told)
            except CodedError as error:
                log.info("rollover ended", code=error.code, reason=error.sentence, **told)

    async def _answer_settlement(self, substream: Substream) -> None:
        """One close, or one cooperative spend."""
        peer = substream.peer.key

        def position(order_id: bytes) -> Position:
            found = self._settlement.find(order_id, peer)
            assert found is not None, "positions are never forgotten"
            return found

        asked: list[bytes] = []

        async def decide(ask: DecideClose) -> Rejected | None:
            asked.append(ask.order_id)
            return await self.desk.decide_close(position(ask.order_id), ask.price)

        async def check(ask: CheckClose) -> None:
            self.desk.check_close(position(ask.order_id), ask.price)

        host = self._settlement.host(peer, {DecideClose: decide, CheckClose: check})
        told = {"peer": substream.peer.short}
        with self._settlements.taken(peer):
            try:
                raw = await converse(substream, settlement.PROTOCOL, settlement.maker(self.core.setup.entropy), host)
                log.info("settlement signed", txid=CTransaction.deserialize(raw).GetTxid()[::-1].hex(), **told)
            except CodedError as error:
                log.info("settlement ended", code=error.code, reason=error.sentence, **told)
                for order_id in asked:
                    await self._settlement.note(order_id, error)


def _kept(data: Path) -> tuple[Kept, str]:
    """What the operator said in an earlier life; if nobody can read it, everything waits for a word, and why."""
    try:
        return Kept.read(data), ""
    except (OSError, ValueError) as error:
        manual = Policy(accept_orders="manual", accept_rollovers="manual", accept_closes="manual")
        file = files.policy_file(data)
        log.warning("the policy that was set through the API cannot be read", file=str(file), reason=str(error))
        return Kept(
            manual
        ), f"{file} cannot be read: orders, rollovers and closes wait for your word; set the policy anew"


def build_behind(config: MakerConfig, stage: Stage) -> None:
    """The second stage of a maker's start."""
    maker = Maker.build(config, None, stage=stage)
    log.info("maker", identity=str(maker.core.identity.public), network=config.network, listen=str(config.listen))
