"""The node's place on the network: it dials, listens, and starts a handler for each substream that a peer opens."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio
from attrs import field, frozen

from node.causes import leaves
from node.health import UNREPORTED, Report, stay
from node.network.address import Identity, PeerAddress, PeerId
from node.network.carriers import TCP, Carriers, origin, why
from node.network.connection import BUSY, FORBIDDEN, PATH, Connection, Liveness, shake_hands
from node.network.counts import ConnectionCounts, EndpointCounts
from node.network.errors import CannotListen, Closed, ConnectionLost, DialFailed, HandshakeFailed, Refuse
from node.network.strangers import Strangers
from node.network.substream import INTERNAL_ERROR, Substream
from protocols.errors import CodedError, LocalError, RemoteError, RemoteProtocolError
from protocols.transport.events import Event
from protocols.transport.handshake import KEY_BYTES
from protocols.transport.http2 import SessionLimits
from protocols.transport.session import Session

log = structlog.get_logger("network")

Handler = Callable[[Substream], Awaitable[None]]
"""Speaks one protocol on one substream. When it returns, the substream is closed in order."""


@frozen
class Limits:
    """What one endpoint grants all its peers together."""

    handshake_within: float = 10
    """Seconds for dialling one address, from the name look-up to the peer's answer; and for a stranger to introduce
    itself."""
    strangers: int = 256
    """Handshakes under way at once. One more takes the place of the oldest that has shown nothing yet."""
    strangers_per_address: int = 32
    """The same, of one IPv4 address or one /64 of IPv6."""
    connections: int = 4096
    """Peers connected at once; one that is connected already may come again."""
    answer_within: float = 5
    """Seconds that a connection has to show that it is alive when there is another to the same peer."""
    settle_within: float = 30
    """Seconds for dialogues on the one of two connections that is given up."""
    backoff: float = 1
    """Seconds that a peer who broke the protocol is kept out, doubled each time up to `longest_backoff`."""
    longest_backoff: float = 300
    liveness: Liveness = field(factory=Liveness)
    session: SessionLimits = field(factory=SessionLimits)


@frozen
class ConnectionUp:
    connection: Connection


@frozen
class ConnectionDown:
    connection: Connection
    reason: str


ConnectionEvent = ConnectionUp | ConnectionDown
_EVENTS = 4096
_OFFENDERS = 1024
_LINGERING = 4
"""Connections of one peer, those included that were replaced and are not quite over: then it dials too often."""


class Endpoint:
    """All connections of one identity. `run` must be running for anything but `handle` to work.

    With each peer there is at most one connection. Whoever dials a peer to which there is one gets that, if the peer
    still answers on it. Of two that are made at once, one dialled from each side, both sides keep the one dialled by
    the smaller key, and let the dialogues on the other end. A peer that dials again has lost its old connection: the
    new one takes its place.

    `entropy(n)` returns n random bytes (ephemeral keys). `allow`, when given, are the only peers that may dial us;
    those in `block` may not, and are not dialled: see `admit`. `carriers` are TCP, directly or through a proxy; they
    and `substream`, what dialogues are held on, are replaced in a simulation.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        handlers: Mapping[str, Handler] | None = None,
        limits: Limits | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        carriers: Carriers = TCP,
        substream: type[Substream] = Substream,
        allow: Collection[PeerId] | None = None,
        block: Collection[PeerId] = frozenset(),
    ) -> None:
        self.identity = identity
        self.allow = allow
        self.block = block
        self.crashes = 0
        """Handlers that raised something unexpected."""
        self.counts = EndpointCounts()
        self._limits = limits or Limits()
        self._entropy = entropy
        self._carriers = carriers
        self._substream = substream
        self._handlers: dict[str, Handler] = {}
        self._connections: dict[Connection, None] = {}
        self._with: dict[PeerId, list[Connection]] = {}
        self._strangers = Strangers(
            self._limits.strangers, self._limits.strangers_per_address, self._limits.handshake_within
        )
        self._turns: dict[PeerId, trio.Lock] = {}
        self._listening: set[trio.CancelScope] = set()
        self._offenders: dict[PeerId, tuple[int, float]] = {}
        self._subscribers: set[trio.MemorySendChannel[ConnectionEvent]] = set()
        self._nursery: trio.Nursery | None = None
        for path, handler in (handlers or {}).items():
            self.handle(path, handler)

    def __repr__(self) -> str:
        return f"<Endpoint {self.identity.public.short} {len(self._connections)} connections>"

    async def run(
        self, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[Endpoint] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled or closed; the started value is the endpoint itself. Listening begins with `listen`."""
        if self._nursery is not None:
            raise LocalError("already_running", "the endpoint is running already")
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started(self)
                await stay(report)
        finally:
            self._nursery = None
            for subscriber in self._subscribers:
                subscriber.close()
            self._subscribers.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Endpoint]:
        """``async with Endpoint(identity).running() as endpoint``: closed in order at the end of the block."""
        failed: Exception | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self.run)
            try:
                yield self
                await self.aclose()
            except Exception as error:  # noqa: BLE001  # raised below, and not in a group of one
                failed = error
                nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed

    async def aclose(self, within: float = 5) -> None:
        """Listen no more, let the dialogues end for so many seconds at most, close all connections, and end `run`.

        Cancelled, it does not wait.
        """
        nursery = self._running()
        try:
            for scope in self._listening:
                scope.cancel()
            with trio.move_on_after(within):
                async with trio.open_nursery() as draining:
                    for connection in self.connections:
                        draining.start_soon(connection.drain)
        finally:
            nursery.cancel_scope.cancel()

    # -- protocols

    def handle(self, path: str, handler: Handler) -> None:
        """Speak a protocol from now on, on connections that are open too. `path`: ``/cfd/<protocol>/<version>``."""
        if not PATH.fullmatch(path):
            raise LocalError("bad_path", f"protocol path {path!r} must look like /cfd/<protocol>/<version>")
        if path in self._handlers:
            raise LocalError("path_taken", f"{path} has a handler already")
        self._handlers[path] = handler

    @property
    def paths(self) -> tuple[str, ...]:
        """What is spoken here, sorted."""
        return tuple(sorted(self._handlers))

    # -- connections

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Those that are up, oldest first."""
        return tuple(connection for connection in self._connections if not connection.closed)

    def connection_to(self, peer: PeerId) -> Connection | None:
        """The one on which substreams can be opened, if there is one."""
        usable = [each for each in self._with.get(peer, ()) if each.usable]
        return next(filter(self._preferred, usable), usable[-1] if usable else None)

    @property
    def offences(self) -> int:
        """Connections that ended because the peer broke the protocol."""
        return self.counts.offences.total()

    @property
    def traffic(self) -> ConnectionCounts:
        """What passed on all connections, from the endpoint's beginning."""
        return self.counts.total(connection.counts for connection in self._connections)

    def admit(self, allow: Collection[PeerId] | None, block: Collection[PeerId]) -> None:
        """Replace both lists, and part with those who are connected and may not be any more."""
        self.allow, self.block = allow, block
        for connection in self.connections:
            if self._unwelcome(connection.peer, dialled=connection.dialled) == FORBIDDEN:
                connection.part(FORBIDDEN, "the peer is not allowed any more")

    def connection_events(self) -> trio.MemoryReceiveChannel[ConnectionEvent]:
        """Every connection that comes up or goes down from now on, behind one `ConnectionUp` for each that is up.

        To be iterated and closed. It ends with the endpoint, and for a listener more than 4 096 events behind.
        """
        send, receive = trio.open_memory_channel[ConnectionEvent](_EVENTS + len(self._connections))
        for connection in self._connections:
            send.send_nowait(ConnectionUp(connection))
        self._subscribers.add(send)
        return receive

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Take connections on an address (port 0: any that is free) until `run` ends; returns the address.

        Raises CannotListen.
        """
        where: tuple[str, int] = await self._running().start(self.serve, host, port)
        return where

    async def serve(
        self,
        host: str,
        port: int,
        *,
        report: Report = UNREPORTED,
        task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """`listen`, until this call is cancelled; connections that were taken go on. Started with the address."""
        nursery = self._running()
        try:
            listeners, where = await self._carriers.listen(host, port)
        except OSError as error:
            raise CannotListen(host, port, why(error)) from error
        with trio.CancelScope() as scope:
            self._listening.add(scope)
            try:
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(partial(trio.serve_listeners, self.accept, listeners, handler_nursery=nursery))
                    task_status.started(where)
                    await stay(report)
            finally:
                self._listening.discard(scope)

    async def open(self, path: str, address: PeerAddress, *others: PeerAddress) -> Substream:
        """Open a substream on the connection to a peer, which is dialled if need be. Raises as `dial` and
        `Connection.open` do."""
        connection = self.connection_to(address.peer) or await self.dial(address, *others)
        try:
            return await connection.open(path)
        except (ConnectionLost, Closed):
            # while it waited for its turn; on that connection nothing was said yet
            return await (await self.dial(address, *others)).open(path)

    async def dial(self, address: PeerAddress, *others: PeerAddress) -> Connection:
        """The connection to a peer: the one that there is, if the peer answers on it, or a new one to the first of its
        addresses that is reached.

        Raises DialFailed, HandshakeFailed, or LocalError if we may or can not dial it.
        """
        nursery, peer = self._running(), address.peer
        if any(other.peer != peer for other in others):
            raise LocalError("different_peers", "the addresses to dial are not all of one peer")
        if peer in self.block:
            raise LocalError("peer_blocked", f"peer {peer.short} is on the block list")
        turn = self._turns.setdefault(peer, trio.Lock())
        try:
            async with turn:
                for connection in tuple(self._with.get(peer, ())):
                    if connection.exhausted and not connection.parting:
                        nursery.start_soon(connection.drain)
                    elif await self._alive(connection):
                        return connection
                connection = await self._dial_one_of((address, *others))
                connection.open_elsewhere = lambda path: self.open(path, address, *others)
                # The peer may have dialled us meanwhile.
                return self.connection_to(peer) or connection
        finally:
            if not turn.locked():
                self._turns.pop(peer, None)

    async def _dial_one_of(self, addresses: tuple[PeerAddress, ...]) -> Connection:
        failed: list[DialFailed | HandshakeFailed | LocalError] = []
        for address in addresses:
            try:
                return await self._dial(address)
            except (DialFailed, HandshakeFailed, LocalError) as error:
                self.counts.dials_failed[error.code] += 1
                failed.append(error)
        if len(failed) == 1:
            raise failed[0]
        reasons = "; ".join(error.sentence for error in failed)
        raise DialFailed(f"peer {addresses[0].peer.short}", reasons) from failed[-1]

    async def _dial(self, address: PeerAddress) -> Connection:
        place = f"{address.host}:{address.port}"
        with trio.move_on_after(self._limits.handshake_within):
            try:
                carrier = await self._carriers.dial(address.host, address.port)
            except OSError as error:
                raise DialFailed(place, why(error)) from error
            try:
                return await self.connect(carrier, address.peer)
            except trio.BrokenResourceError as error:
                raise HandshakeFailed(place, "it hung up; is the key right?") from error
            except RemoteProtocolError as error:
                raise HandshakeFailed(place, error.sentence) from error
        raise DialFailed(place, f"no answer within {self._limits.handshake_within:g} s")

    async def connect(self, carrier: trio.abc.Stream, peer: PeerId) -> Connection:
        """`dial` on a carrier that is there already, without its time limit.

        Raises RemoteProtocolError or BrokenResourceError; the carrier is closed then.
        """
        nursery = self._running()
        session = self._session(peer)
        try:
            events = await shake_hands(carrier, session)
        except BaseException:
            await trio.aclose_forcefully(carrier)
            raise
        connection = self._connection(carrier, session, dialled=True)
        nursery.start_soon(self._serve, connection, events)
        return connection

    async def accept(self, carrier: trio.abc.Stream) -> None:
        """Serve a carrier on which somebody dials us, to its end. Nothing that the peer does makes this raise."""
        session = self._session(None)
        events: list[Event] = []
        failure = "too_slow"
        try:
            with self._strangers.admitted(session, origin(carrier)) as stranger:
                events = await shake_hands(carrier, session)
                if word := self._unwelcome(PeerId(session.peer), dialled=False):
                    failure, events = word.decode(), []
                    await self._dismiss(carrier, session, word)
            if stranger.crowded_out:
                failure = "crowded_out"
        except RemoteProtocolError as error:
            failure = error.code
        except trio.BrokenResourceError:
            failure = "hung_up"
        finally:
            if not events:
                await trio.aclose_forcefully(carrier)
        if events:
            await self._serve(self._connection(carrier, session, dialled=False), events)
        else:
            self.counts.handshakes_failed[failure] += 1
            log.debug("handshake failed", cause=failure)

    def _unwelcome(self, peer: PeerId, *, dialled: bool) -> bytes:
        """Why there is no connection with a peer that dialled us, or that we have dialled; empty if there may be."""
        if peer in self.block or (not dialled and self.allow is not None and peer not in self.allow):
            return FORBIDDEN
        _, until = self._offenders.get(peer, (0, 0.0))
        full = len(self._connections) >= self._limits.connections and self.connection_to(peer) is None
        hasty = len(self._with.get(peer, ())) >= _LINGERING
        return BUSY if full or hasty or trio.current_time() < until else b""

    async def _dismiss(self, carrier: trio.abc.Stream, session: Session, word: bytes) -> None:
        connection = Connection(
            carrier, session, dialled=False, on_stream=self._stream_opened, liveness=self._limits.liveness
        )
        connection.part(word)
        await connection.run([])

    def _session(self, peer: PeerId | None) -> Session:
        return Session(
            secret=self.identity.secret,
            ephemeral=self._entropy(KEY_BYTES),
            peer=None if peer is None else peer.key,
            limits=self._limits.session,
        )

    def _connection(self, carrier: trio.abc.Stream, session: Session, *, dialled: bool) -> Connection:
        connection = Connection(
            carrier,
            session,
            dialled=dialled,
            on_stream=self._stream_opened,
            liveness=self._limits.liveness,
            substream=self._substream,
            spoken=self._handlers,
        )
        others = self._with.setdefault(connection.peer, [])
        for other in filter(lambda other: other.usable, others):
            if other.dialled == dialled:
                other.part(b"replaced", "replaced by a newer connection of the same peer")
            else:
                self._running().start_soon(self._settle, other, connection)
        others.append(connection)
        self._connections[connection] = None
        self.counts.connections += 1
        self._tell(ConnectionUp(connection))
        return connection

    def _preferred(self, connection: Connection) -> bool:
        """Whether it is the one to keep of two that were dialled from both sides: that of the smaller key."""
        return connection.dialled == (self.identity.public < connection.peer)

    async def _settle(self, old: Connection, new: Connection) -> None:
        """Keep one of two connections, dialled from both sides; the old one only if it is alive."""
        if await self._alive(old):
            with trio.move_on_after(self._limits.settle_within):
                await (new if self._preferred(old) else old).drain()

    async def _alive(self, connection: Connection) -> bool:
        """Whether the peer answers on it; if not, it is over now."""
        if not connection.usable:
            return False
        with trio.move_on_after(self._limits.answer_within):
            try:
                await connection.ping()
            except CodedError:
                return False
            return connection.usable
        connection.part(b"replaced", "the peer does not answer")
        return False

    async def _serve(self, connection: Connection, events: list[Event]) -> None:
        try:
            await connection.run(events)
        except Exception:
            # A bug of ours that one connection met: it must not take the others down.
            self.crashes += 1
            log.exception("connection crashed", peer=connection.peer.short)
        finally:
            del self._connections[connection]
            self._with[connection.peer].remove(connection)
            if not self._with[connection.peer]:
                del self._with[connection.peer]
            self.counts.ended.add(connection.counts)
            reason = connection.reason or "closed on this side"
            if connection.offence is not None:
                self.counts.offences[connection.offence] += 1
                self._remember_offence(connection.peer, reason)
            self._tell(ConnectionDown(connection, reason))

    def _remember_offence(self, peer: PeerId, reason: str) -> None:
        count, _ = self._offenders.pop(peer, (0, 0.0))
        pause = min(self._limits.longest_backoff, self._limits.backoff * 2.0 ** min(count, 30))
        self._offenders[peer] = (count + 1, trio.current_time() + pause)
        if len(self._offenders) > _OFFENDERS:
            del self._offenders[next(iter(self._offenders))]
        log.warning("peer disconnected", peer=peer.short, reason=reason, kept_out=pause)

    def _tell(self, event: ConnectionEvent) -> None:
        for subscriber in list(self._subscribers):
            try:
                subscriber.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                subscriber.close()
                self._subscribers.discard(subscriber)

    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise LocalError("not_running", "the endpoint is not running")
        return self._nursery

    # -- substreams

    def _stream_opened(self, substream: Substream) -> None:
        handler = self._handlers.get(substream.path)
        if handler is None or self._nursery is None:
            substream.refuse(404, "\n".join(self.paths).encode())
        else:
            self._nursery.start_soon(self._handle, handler, substream)

    async def _handle(self, handler: Handler, substream: Substream) -> None:
        try:
            await handler(substream)
            await substream.aclose()
        except Exception as error:  # noqa: BLE001  # judged and logged there
            self._handler_failed(substream, error)
        finally:
            substream.reset()

    def _handler_failed(self, substream: Substream, error: Exception) -> None:
        causes = list(leaves(error))
        where = {"path": substream.path, "peer": substream.peer.short}
        for cause in causes:
            if isinstance(cause, Refuse) and substream.refuse(cause.status, cause.body.encode(), cause.retry_after):
                return
        if all(isinstance(cause, RemoteError) for cause in causes):
            log.debug("substream ended by the peer", **where, reason=str(causes[0]))
            return
        self.crashes += 1
        log.error("handler crashed", **where, exc_info=error)
        if not substream.refuse(500):
            substream.reset(INTERNAL_ERROR)
