"""The node's place on the network: it dials, listens, and starts a handler for each substream that a peer opens."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Protocol

import structlog
import trio
from attrs import define, field, frozen

from node.health import UNREPORTED, Report, stay
from node.network.address import Identity, PeerAddress, PeerId
from node.network.connection import BUSY, FORBIDDEN, PATH, Connection, Liveness, shake_hands
from node.network.errors import CannotListen, DialFailed, HandshakeFailed, Refuse
from node.network.substream import INTERNAL_ERROR, Substream
from protocols.errors import LocalError, RemoteError, RemoteProtocolError
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
    """Seconds for dialling, from the name look-up to the peer's answer; and for a stranger to introduce itself."""
    strangers: int = 256
    """Handshakes under way at once. One more takes the place of the oldest that has shown nothing yet."""
    connections: int = 4096
    connections_per_peer: int = 4
    """One more takes the place of the oldest: the peer lost it and does not know yet."""
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
_LISTEN_BACKLOG = 1024


class Carriers(Protocol):
    """Where carriers come from. Both raise OSError."""

    async def dial(self, host: str, port: int) -> trio.abc.Stream: ...

    async def listen(self, host: str, port: int) -> tuple[list[trio.abc.Listener[trio.abc.Stream]], tuple[str, int]]:
        """Listeners, and the address that they listen on: port 0 is any that is free."""
        ...


class _Tcp:
    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        return await trio.open_tcp_stream(host, port)

    async def listen(self, host: str, port: int) -> tuple[list[trio.abc.Listener[trio.abc.Stream]], tuple[str, int]]:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=_LISTEN_BACKLOG)
        where = listeners[0].socket.getsockname()
        return list(listeners), (where[0], where[1])


TCP: Carriers = _Tcp()


@define(eq=False)
class _Stranger:
    session: Session
    scope: trio.CancelScope


class Endpoint:
    """All connections of one identity. `run` must be running for anything but `handle` to work.

    `entropy(n)` returns n random bytes (ephemeral keys). `allow`, when given, are the only peers that may dial us;
    those in `block` may not, and are not dialled. Both may be replaced at any time. `carriers` and `substream` take
    the place of TCP, and of what dialogues are held on, in a simulation.
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
        self.offences = 0
        """Connections that ended because the peer broke the protocol."""
        self._limits = limits or Limits()
        self._entropy = entropy
        self._carriers = carriers
        self._substream = substream
        self._handlers: dict[str, Handler] = {}
        self._connections: dict[Connection, None] = {}
        self._strangers: dict[_Stranger, None] = {}
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
        """Serve until cancelled; the started value is the endpoint itself. Listening begins with `listen`."""
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
            raise CannotListen(host, port, _why(error)) from error
        async with trio.open_nursery() as accepting:
            accepting.start_soon(partial(trio.serve_listeners, self.accept, listeners, handler_nursery=nursery))
            task_status.started(where)
            await stay(report)

    async def dial(self, address: PeerAddress) -> Connection:
        """Connect to a peer. Raises DialFailed, HandshakeFailed, or LocalError if we may or can not dial it."""
        self._running()
        if address.peer in self.block:
            raise LocalError("peer_blocked", f"peer {address.peer.short} is on the block list")
        if address.onion:
            raise LocalError("onion_unsupported", f"{address.host}: onion addresses need a SOCKS5 proxy, not built yet")
        place = f"{address.host}:{address.port}"
        with trio.move_on_after(self._limits.handshake_within):
            try:
                carrier = await self._carriers.dial(address.host, address.port)
            except OSError as error:
                raise DialFailed(place, _why(error)) from error
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
        stranger = _Stranger(self._session(None), trio.CancelScope())
        stranger.scope.deadline = trio.current_time() + self._limits.handshake_within
        self._make_room_for_strangers()
        self._strangers[stranger] = None
        events: list[Event] = []
        try:
            with stranger.scope:
                events = await shake_hands(carrier, stranger.session)
                if word := self._unwelcome(PeerId(stranger.session.peer)):
                    await self._dismiss(carrier, stranger.session, word)
                    return
        except (RemoteProtocolError, trio.BrokenResourceError) as error:
            log.debug("handshake failed", reason=str(error))
        finally:
            self._strangers.pop(stranger, None)
            if not events:
                await trio.aclose_forcefully(carrier)
        if events:
            await self._serve(self._connection(carrier, stranger.session, dialled=False), events)

    def _make_room_for_strangers(self) -> None:
        if len(self._strangers) >= self._limits.strangers:
            # Whoever has sent a valid first message knows our key and is about to finish.
            oldest = min(self._strangers, key=lambda stranger: stranger.session.handshake_messages > 0)
            del self._strangers[oldest]
            oldest.scope.cancel()

    def _unwelcome(self, peer: PeerId) -> bytes:
        """Why a peer that dialled us is not taken; empty if it is."""
        if peer in self.block or (self.allow is not None and peer not in self.allow):
            return FORBIDDEN
        _, until = self._offenders.get(peer, (0, 0.0))
        if trio.current_time() < until or len(self._connections) >= self._limits.connections:
            return BUSY
        return b""

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
        )
        same = [other for other in self._connections if other.peer == connection.peer and not other.closed]
        if len(same) >= self._limits.connections_per_peer:
            same[0].part(b"replaced", "replaced by a newer connection of the same peer")
        self._connections[connection] = None
        self._tell(ConnectionUp(connection))
        return connection

    async def _serve(self, connection: Connection, events: list[Event]) -> None:
        try:
            await connection.run(events)
        except Exception:
            # A bug of ours that one connection met: it must not take the others down.
            self.crashes += 1
            log.exception("connection crashed", peer=connection.peer.short)
        finally:
            del self._connections[connection]
            reason = connection.reason or "closed on this side"
            if connection.offence is not None:
                self._remember_offence(connection.peer, reason)
            self._tell(ConnectionDown(connection, reason))

    def _remember_offence(self, peer: PeerId, reason: str) -> None:
        self.offences += 1
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
        causes = list(_causes(error))
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


def _causes(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for part in error.exceptions:
            yield from _causes(part)
    else:
        yield error


def _why(error: OSError) -> str:
    """The reason alone; trio wraps it in sentences with addresses."""
    causes = list(_causes(error.__cause__)) if isinstance(error.__cause__, Exception) else []
    first = next((cause for cause in causes if isinstance(cause, OSError)), error)
    if first.errno is None or isinstance(first, socket.gaierror):
        return (first.strerror or str(first)).lower()
    return os.strerror(first.errno).lower()
