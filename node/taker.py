"""A taker: keeps a link to each maker, takes offers, keeps its positions."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import trio
from attrs import Factory, define, field

from node.causes import leaves
from node.close_price import is_worse
from node.config import TakerConfig
from node.core import Core, build
from node.errors import Conflict, FieldError, NeedsUser, NotFound
from node.health import Report, State, stay
from node.makers import Changes, keep_changes, read_changes
from node.metrics import Measured, serve_metrics
from node.network.address import PeerAddress, PeerId
from node.network.connection import Connection
from node.network.conversation import Host, speak
from node.position.book import Positions
from node.position.commands import place_order
from node.projections import Projections
from node.rollover import RolloverNode
from node.schedule import Schedule
from node.seams import MACHINE, Seams
from node.settlement import SettlementNode
from node.settling import Proposed, Settler
from node.setup import Setup
from node.shared import SharedNode
from node.start import Stage
from node.supervision import Service
from node.web.views import offer_view
from protocols import contract_setup, identify, offers, ping, positions
from protocols.contract.numbers import BadNumber, parse_price, parse_tolerance
from protocols.contract.terms import TOLERANCE_FAR, TOLERANCE_NEAR, Role, Side, Terms
from protocols.contract_setup import Order
from protocols.errors import CodedError, LocalError, PeerGone, RemoteError, WorldError
from protocols.identify import PeerRole
from protocols.offers import ID_LENGTH, Offer, OffersArrived
from protocols.ping import Answered, NextNonce

if TYPE_CHECKING:
    from fastapi import APIRouter

log = structlog.get_logger("taker")


@define(eq=False)
class MakerLink:
    """A connection to a maker, with what it said of itself and its offers."""

    address: PeerAddress
    connection: Connection
    identity: identify.Identity
    offers: tuple[Offer, ...] = ()
    offers_at: float = 0.0
    """When the present set arrived, on the wall clock."""
    latency: float | None = None
    """Seconds of the last ping's round trip."""


@define(eq=False)
class Taker:
    """What a taker has beside every node's services."""

    core: Core
    config: TakerConfig
    links: dict[bytes, Service[MakerLink]] = Factory(dict)
    """By the maker's identity."""
    settler: Settler = field(init=False)
    settlements: Service[trio.Nursery] = field(init=False)
    connections: dict[bytes, Connection] = Factory(dict)
    """To makers, by identity, from the moment that they said who they are."""
    schedule: Schedule = field(init=False)
    _offers: dict[bytes, tuple[tuple[Offer, ...], float]] = field(init=False, factory=dict)
    """The last known of each maker, and when they arrived."""
    _changes: Changes = field(init=False)
    _trades: Service[trio.Nursery] = field(init=False)
    _rollovers: Service[trio.Nursery] = field(init=False)

    @classmethod
    def build(
        cls, config: TakerConfig, api_socket: socket.socket | None, seams: Seams = MACHINE, stage: Stage | None = None
    ) -> Taker:
        """Not yet running. Raises LocalError when the seed or the data directory cannot be used."""
        from node.web.close_api import taker_close_router
        from node.web.node_api import node_routers, show_lasting
        from node.web.outlook import Values
        from node.web.taker_api import taker_router
        from node.web.topics import taker_topics

        taker: Taker
        projections: Projections
        measured = Measured()

        def routers(core: Core) -> list[APIRouter]:
            return [
                *node_routers(core, projections, measured, taker.schedule.view),
                taker_router(taker, projections),
                taker_close_router(taker),
            ]

        core = build(
            config,
            api_socket,
            PeerRole.TAKER,
            routers,
            seams,
            stage=stage,
        )
        taker = cls(core, config)
        taker.schedule = Schedule(RolloverNode(core.setup, core.feeds), config.rollover, taker.connections.get)
        taker._changes = read_changes(config.data)
        for peer, addresses in taker._changes.apply(config.makers).items():
            taker._link(peer, addresses)
        taker._trades = core.supervisor.reporting("setups", _run_nursery, [core.positions])
        taker._rollovers = core.supervisor.reporting("rollovers", taker.schedule.run, [core.positions])
        settling = SettlementNode(core.setup, config.cooperative_spend)
        taker.settler = Settler(settling, core.feeds, taker.links, config.close_band, config.close_if_oracle_lies)
        taker.settlements = core.supervisor.reporting("settlements", taker.settler.run, [core.positions])
        projections = Projections(
            core,
            partial(taker_topics, taker, Values(core)),
            lambda position: show_lasting(core, taker.schedule.view, position, dict(core.broadcaster.status())),
        )
        if api_socket is not None or stage is not None:
            projections.serve()
            serve_metrics(core, measured)
        if stage is not None and stage.door is not None:
            stage.door.let_in(routers(core))
        return taker

    def offers_view(self) -> dict[str, dict[str, Any]]:
        """The last known offers of every maker, by maker and id; stale when too old, or when the maker is gone."""
        now = self.core.clock.now()
        for identity, service in self.links.items():
            if service.health.up:
                with service.lent() as link:
                    self._offers[identity] = link.offers, link.offers_at
        return {
            f"{identity.hex()}/{offer.id.hex()}": {
                **offer_view(offer),
                "maker": identity.hex(),
                "as_of": as_of,
                "stale": offer.stale(now) or not self.links[identity].health.up,
                "reason": None if self.links[identity].health.up else self.links[identity].health.reason,
            }
            for identity, (offers, as_of) in self._offers.items()
            for offer in offers
        }

    # --- which makers -------------------------------------------------------------------------------------------------

    def _link(self, peer: PeerId, addresses: list[PeerAddress]) -> None:
        self.links[peer.key] = self.core.supervisor.reporting(
            f"maker-{peer.short}", partial(self._keep_link, *addresses), [self.core.endpoint]
        )

    def addresses(self, identity: bytes) -> list[PeerAddress]:
        """At which that maker is dialled, in turn."""
        return self._changes.apply(self.config.makers).get(PeerId(identity), [])

    async def add_maker(self, text: str) -> bytes:
        """Keep a link to that maker from now on, over restarts too; one that is known is dialled there first.

        Returns its identity. Raises FieldError for what is no address, `OSError` if it cannot be kept."""
        try:
            address = PeerAddress.parse(text)
        except LocalError as error:
            raise FieldError("address", error.sentence) from error
        await self._keep(self._changes.with_maker(address))
        if (known := self.links.get(address.peer.key)) is not None:
            self.core.supervisor.remove(known.name)
            await known.until(State.STOPPED)
        self._link(address.peer, self.addresses(address.peer.key))
        return address.peer.key

    async def remove_maker(self, identity: bytes) -> None:
        """Keep no link to that maker. Raises NotFound, `OSError`, Conflict while a position with it goes on."""
        if identity not in self.links:
            raise NotFound("no_such_maker", f"there is no maker {identity.hex()}")
        with self.core.positions.lent() as positions:
            live = [each.id.hex() for each in positions.all() if each.peer == identity and not each.ended]
        if live:
            raise Conflict("positions_open", f"{len(live)} positions with this maker go on, the first is {live[0]}")
        await self._keep(self._changes.without(PeerId(identity)))
        self.core.supervisor.remove(self.links.pop(identity).name)
        self._offers.pop(identity, None)

    async def _keep(self, changes: Changes) -> None:
        await trio.to_thread.run_sync(keep_changes, self.config.data, changes)
        self._changes = changes

    # --- the link to a maker ------------------------------------------------------------------------------------------

    async def _keep_link(
        self, address: PeerAddress, *others: PeerAddress, report: Report, task_status: trio.TaskStatus[MakerLink]
    ) -> None:
        """One connection's life: who is it, what does it offer, how far is it."""
        with self.core.endpoint.lent() as endpoint:
            try:
                connection = await endpoint.dial(address, *others)
            except LocalError as error:
                raise NeedsUser(error.sentence, "correct the maker's address in the configuration") from error
            except RemoteError as error:
                raise _of_the_world(address, error) from error
            try:
                await self._speak_with(address, connection, report, task_status)
            except Exception as error:
                # several dialogues may end at once, each with its own reason; one that says more than that it ended
                faults = list(leaves(error))
                if not all(isinstance(fault, RemoteError | WorldError) for fault in faults):
                    raise
                fault = next((fault for fault in faults if not isinstance(fault, PeerGone)), faults[0])
                raise _of_the_world(address, fault) from error
            finally:
                self.connections.pop(address.peer.key, None)
                with trio.move_on_after(1, shield=True):
                    await connection.aclose()

    async def _speak_with(
        self, address: PeerAddress, connection: Connection, report: Report, task_status: trio.TaskStatus[MakerLink]
    ) -> None:
        identity = await speak(connection, identify.PROTOCOL, identify.opener(self.config.network), Host())
        link = MakerLink(address, connection, identity)
        await self._compare(connection)
        self.connections[address.peer.key] = connection
        self.schedule.wake()

        async def arrived(ask: OffersArrived) -> None:
            first, known = link.offers_at == 0.0, {offer.id for offer in link.offers}
            for offer in () if first else ask.offers:  # the first ones have stood for as long as they have
                if offer.id not in known:
                    self.core.clocks.heard(f"maker {address.peer.short}", offer.created + 0.5)
            link.offers, link.offers_at = ask.offers, self.core.clock.now()
            if first:
                task_status.started(link)
            report.fresh()

        sent_at = 0.0

        async def next_nonce(_: NextNonce) -> bytes:
            nonlocal sent_at
            if link.latency is not None:
                await trio.sleep(ping.EVERY)
            sent_at = trio.current_time()
            return self.core.setup.entropy(ping.SIZE)

        async def answered(_: Answered) -> None:
            link.latency = trio.current_time() - sent_at
            report.fresh()
            report.beat()

        async with trio.open_nursery() as nursery:
            pinging = Host(answers={NextNonce: next_nonce, Answered: answered})
            listening = Host(answers={OffersArrived: arrived})
            nursery.start_soon(speak, connection, ping.PROTOCOL, ping.opener(), pinging)
            nursery.start_soon(speak, connection, offers.PROTOCOL, offers.taker(), listening)
            await connection.wait_closed()
            raise WorldError("connection_lost", connection.reason or "the connection ended")

    async def _compare(self, connection: Connection) -> None:
        """Tell how far our positions with this maker have come, before anything of them goes on.

        What cannot be compared goes on all the same: nothing is decided by it but that a record is too old.
        """
        told = {"maker": connection.peer.short}
        try:
            host = SharedNode(self.core.setup).host(connection.peer.key)
            for each in await speak(connection, positions.PROTOCOL, positions.taker(), host):
                if each.peer is None:
                    log.info("not shared: over at the maker, or lost there", order=each.own.order_id.hex(), **told)
        except CodedError as error:
            log.info("positions not compared", code=error.code, reason=error.sentence, **told)

    # --- rollovers ----------------------------------------------------------------------------------------------------

    def roll_over(self, order_id: bytes) -> None:
        """Try now; what becomes of it is the position's. Raises NotFound, Conflict naming why not, or WorldError."""
        with self._rollovers.lent() as nursery:
            self.schedule.start(nursery, order_id)

    # --- orders -------------------------------------------------------------------------------------------------------

    async def place(self, maker: bytes | None, offer_id: bytes, quantity: int, leverage: int) -> bytes:
        """Order from an offer; returns the order's id once it is on record. What becomes of it is the position's.

        `maker` may be left out if there is only one that makes this offer. Raises LocalError naming the field, or
        WorldError when a service that is needed is away.
        """
        self.core.setup.check_ready()
        link, offer = self._find(maker, offer_id)
        self.check(offer, quantity, leverage)
        order = Order(self.core.setup.entropy(ID_LENGTH), offer, quantity, leverage)
        with self._trades.lent() as nursery:
            await nursery.start(self._take, link, order)
        return order.order_id

    def check(self, offer: Offer, quantity: int, leverage: int) -> Terms:
        """The terms of such an order. Raises LocalError naming what does not go."""
        if offer.stale(self.core.clock.now()):
            raise Conflict("stale_offer", f"offer {offer.id.hex()} is older than ten minutes; wait for a new one")
        if offer.symbol not in self.config.symbols:
            raise Conflict(
                "other_symbol",
                f"the offer's symbol is {offer.symbol}, the configuration allows {', '.join(self.config.symbols)}",
            )
        if offer.oracle != self.core.setup.oracle_keys:
            raise Conflict("other_oracle", "the offer names another oracle than this node's configuration")
        if offer.timelocks != self.config.timelocks:
            raise Conflict(
                "other_timelocks", f"the offer's timelocks are {offer.timelocks}, not {self.config.timelocks}"
            )
        check_fineness(offer)
        try:
            return offer.check_order(quantity, leverage)
        except BadNumber as error:
            raise FieldError(error.field, str(error)) from error

    def find(self, maker: bytes | None, symbol: str, side: Side, limit: str) -> tuple[bytes, Offer]:
        """The best offer there is for who takes that side of the symbol, and its maker, at `limit` or better.

        Raises NotFound, or Conflict (price_moved) if there are only worse ones."""
        found = [
            (identity, offer)
            for identity, service in self.links.items()
            if maker in (None, identity) and service.health.up
            for offer in _offers_of(service)
            if offer.symbol == symbol and offer.side is side.other
        ]
        if not found:
            raise NotFound("no_such_offer", f"no connected maker offers {symbol} to who goes {side.value}")
        best = min if side is Side.LONG else max
        identity, offer = best(found, key=lambda each: parse_price(each[1].price))
        try:
            if is_worse(side.other, offer.price, limit):  # who closes goes the other way
                raise Conflict("price_moved", f"limit: {limit} is not offered any more, the best is {offer.price}")
        except BadNumber as error:
            raise FieldError(error.field, str(error)) from error
        return identity, offer

    def offer(self, maker: bytes | None, offer_id: bytes) -> tuple[bytes, Offer]:
        """That offer, and its maker. Raises NotFound, or WorldError when the maker named is away."""
        link, offer = self._find(maker, offer_id)
        return link.address.peer.key, offer

    def _find(self, maker: bytes | None, offer_id: bytes) -> tuple[MakerLink, Offer]:
        if maker is not None and maker not in self.links:
            raise NotFound("no_such_maker", f"maker: {maker.hex()} is not configured")
        for service in [self.links[maker]] if maker is not None else self.links.values():
            if maker is None and not service.health.up:
                continue
            with service.lent() as link:
                for offer in link.offers:
                    if offer.id == offer_id:
                        return link, offer
        raise NotFound("no_such_offer", f"offer_id: no connected maker makes offer {offer_id.hex()}")

    async def close(self, order_id: bytes, limit: str | None = None) -> Proposed:
        """Propose a close; returns what at, once it is on record. What becomes of it is the position's.

        Raises what `Settler.close` does, or WorldError when a service that is needed is away.
        """
        with self.settlements.lent() as nursery:
            proposed: Proposed = await nursery.start(self.settler.close, order_id, limit)
            return proposed
        raise AssertionError("a recalled loan raises")

    async def _take(self, link: MakerLink, order: Order, *, task_status: trio.TaskStatus[None]) -> None:
        """Put the order on record, then carry it out: one task does both, lest an order be left that nobody ends."""
        setup = Setup(link.address.peer.key, order.order_id)
        placed = place_order(order, Role.TAKER, setup.peer)
        await self.core.positions.call(Positions.execute, order.order_id, placed)
        task_status.started()
        host = self.core.setup.host(Role.TAKER, setup.peer)
        dialogue = contract_setup.taker(order, self.core.setup.attempt(order.order_id))
        try:
            await self.core.setup.carry_out(setup, speak(link.connection, contract_setup.PROTOCOL, dialogue, host))
        except Exception:  # a bug that one setup met is on record, and must not take the others down
            log.exception("bug in a setup", order=order.order_id.hex())


def _offers_of(service: Service[MakerLink]) -> tuple[Offer, ...]:
    with service.lent() as link:
        return link.offers
    raise AssertionError("a recalled loan raises")


def check_fineness(offer: Offer) -> None:
    """Refuse payouts in coarse steps: a maker could choose them so that the step at the opening price is its gain."""
    for name, most in (("tolerance_near", TOLERANCE_NEAR), ("tolerance_far", TOLERANCE_FAR)):
        found = getattr(offer, name)
        if parse_tolerance(found, name) > parse_tolerance(most, name):
            raise Conflict("coarse_payouts", f"the offer's {name} is {found}, allowed is at most {most}")


def _of_the_world(address: PeerAddress, fault: Exception) -> WorldError:
    """A maker's fault is the world's to the service that keeps the link: it tries again later."""
    assert isinstance(fault, CodedError)
    return WorldError(fault.code, f"maker {address.peer.short}: {fault.sentence}")


async def _run_nursery(*, report: Report, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """A place for setups to run in."""
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await stay(report)


def build_behind(config: TakerConfig, stage: Stage) -> None:
    """The second stage of a taker's start."""
    taker = Taker.build(config, None, stage=stage)
    log.info("taker", identity=str(taker.core.identity.public), network=config.network)
