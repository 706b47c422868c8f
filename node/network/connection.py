"""One connection to one peer: the carrier, the session on it, and the substreams in it.

Two tasks: the reader feeds the session and watches the clock, the writer empties it. Everything else is synchronous
between two checkpoints, so no lock is needed and a cancelled caller never leaves half a record behind.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Awaitable, Callable, Collection, Sequence

import trio
from attrs import frozen
from h2.errors import ErrorCodes

from node.network.address import PeerId
from node.network.counts import ConnectionCounts, ProtocolCounts
from node.network.errors import Busy, Closed, ConnectionLost, Forbidden, HandlerFailed, StreamReset, UnknownProtocol
from node.network.substream import Substream
from protocols.errors import Refused, RemoteProtocolError
from protocols.transport.events import (
    DataArrived,
    DrainHeard,
    Event,
    Farewell,
    LimitChanged,
    PongArrived,
    StreamAborted,
    StreamEnded,
    StreamOpened,
    StreamRefused,
    WindowOpened,
)
from protocols.transport.records import LENGTH_BYTES, MAX_CIPHERTEXT
from protocols.transport.session import Session

CONGESTED = 128 * 1024
"""Bytes waiting for the carrier from which on senders wait too."""
_READ_BYTES = 4 * (LENGTH_BYTES + MAX_CIPHERTEXT)
"""Whole records, so that bulk is not cut in the middle of one each time; not more, since what one read brings is walked
in one go, and a hostile peer may fill it with the smallest frames there are."""
UNKNOWN_CODE = max(ErrorCodes) + 1
"""Under which all HTTP/2 error codes are counted that do not exist."""
_NOTHING = memoryview(b"")
_PING = b"liveness"
_PING_EVERY = 1.0
"""Seconds: see `Budgets.pings`."""
PATH = re.compile(r"/cfd/[a-z0-9_]{1,64}/[1-9][0-9]{0,4}")
"""``/cfd/<protocol>/<version>``"""

# Words in a GOAWAY that have a type of their own on the other side.
FORBIDDEN = b"forbidden"
BUSY = b"busy"


@frozen
class Liveness:
    """Seconds: a ping after so much silence, given up after so much of it, and how long an orderly close may take."""

    ping_after: float = 15
    dead_after: float = 30
    farewell: float = 5


class Connection:
    """Made by :class:`node.network.endpoint.Endpoint`, which runs it. Substreams of one connection end with it."""

    def __init__(
        self,
        carrier: trio.abc.Stream,
        session: Session,
        *,
        dialled: bool,
        on_stream: Callable[[Substream], None],
        liveness: Liveness,
        substream: type[Substream] = Substream,
        spoken: Collection[str] = (),
    ) -> None:
        """`session` is established; `on_stream` is called with each substream that the peer opens. Protocols in
        `spoken` are counted by name when the peer opens them."""
        self.session = session
        self.dialled = dialled
        """Whether we dialled the peer."""
        self.counts = ConnectionCounts()
        self.latency: float | None = None
        """Seconds that the newest ping took, there and back."""
        self.open_elsewhere: Callable[[str], Awaitable[Substream]] | None = None
        """Opens a substream on another connection to the peer, when this one has no stream ids left."""
        self._peer = PeerId(session.peer)
        self._carrier = carrier
        self._on_stream = on_stream
        self._liveness = liveness
        self._make_substream = substream
        self._spoken = spoken
        self._substreams: dict[int, Substream] = {}
        self._outgoing = _NOTHING
        self._in_flight = 0
        self._to_write = trio.lowlevel.ParkingLot()
        self._uncongested = trio.lowlevel.ParkingLot()
        self._slots = trio.lowlevel.ParkingLot()
        self._idle = trio.lowlevel.ParkingLot()
        self._heard = trio.current_time()
        self._pinged: float | None = None  # when the ping left that is not answered yet
        self._ponged = trio.lowlevel.ParkingLot()
        self._answered_at = -math.inf
        self._drain_heard = False
        self._life = trio.CancelScope()
        self._lost: Callable[[], Exception] | None = None
        self._reason: str | None = None
        self._closing = False
        self._offence: str | None = None
        self._gone = trio.Event()

    def __repr__(self) -> str:
        state = f"closed: {self._reason}" if self.closed else f"{len(self._substreams)} substreams"
        return f"<Connection {'to' if self.dialled else 'from'} {self._peer.short} {state}>"

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def closed(self) -> bool:
        """Whether it is over; `reason` says why."""
        return self._lost is not None

    @property
    def reason(self) -> str | None:
        return self._reason

    @property
    def offence(self) -> str | None:
        """The code of what the peer did, if the connection ended because the peer broke the protocol."""
        return self._offence

    @property
    def parting(self) -> bool:
        """Whether it is over or draining."""
        return self.closed or self._closing

    @property
    def usable(self) -> bool:
        """Whether substreams can be opened on it, be it after a while: it is not over, draining, or used up."""
        usable = not (self.parting or self.exhausted)
        return usable and self.session.streams.streams_allowed > 0

    @property
    def exhausted(self) -> bool:
        """Whether it has no stream id left for a substream of ours."""
        return self.session.streams.exhausted

    @property
    def substreams(self) -> tuple[Substream, ...]:
        return tuple(self._substreams.values())

    async def open(self, path: str) -> Substream:
        """Open a substream; waits while as many as the peer allows are open.

        Returns before the peer knows: what it answers shows in the first receive. When all stream ids are used, the
        substream is one of another connection, which is dialled if need be. Raises `ConnectionLost`, `Closed`, or
        `Forbidden` and `Busy` if that is how the peer ended the connection.
        """
        await trio.lowlevel.checkpoint()
        streams = self.session.streams
        while True:
            if self.exhausted and self.open_elsewhere is not None and not self.closed:
                return await self.open_elsewhere(path)
            self._check_open()
            if streams.may_open:
                break
            if self.exhausted:
                raise ConnectionLost("all its stream ids are used")
            if not streams.streams_allowed:
                raise ConnectionLost("the peer takes no more streams, it is shutting down")
            await self._slots.park()
        substream = self._make_substream(self, streams.open_stream(path), path)
        self._substreams[substream.stream_id] = substream
        substream.counts.opened += 1
        # The opening leaves with the first data; if none follows at once, the writer takes it along.
        self._to_write.unpark_all()
        return substream

    def _check_open(self) -> None:
        if self._closing:
            raise Closed("the connection")
        if self._lost is not None:
            raise self._lost()

    async def ping(self) -> float:
        """Seconds until the peer answered. Calls at the same time, and within a second of an answer, share one ping: a
        peer bears no more. Raises `ConnectionLost`, `Closed`."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        if trio.current_time() - self._answered_at >= _PING_EVERY:
            self._ask()
            await self._ponged.park()
            if self._lost is not None:
                raise self._lost()
        assert self.latency is not None
        return self.latency

    def _ask(self) -> None:
        if self._pinged is None:
            self._pinged = trio.current_time()
            self.session.streams.ping(_PING)
            self.flush()

    def _answered(self) -> None:
        if self._pinged is not None:
            self._answered_at = trio.current_time()
            self.latency, self._pinged = self._answered_at - self._pinged, None
            self._ponged.unpark_all()

    async def wait_closed(self) -> None:
        """Until it is over and its carrier closed."""
        await self._gone.wait()

    async def drain(self) -> None:
        """Take no new streams, let those that are open end, then close. Cancelled, it closes without waiting."""
        self._closing = True
        self._slots.unpark_all()
        self.session.streams.drain()
        self.flush()
        try:
            while not self.closed and not (self._drain_heard and not self._substreams):
                await self._idle.park()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Send what waits to be sent, say farewell, close; waits for that at most some seconds, not if cancelled."""
        if not self.closed:
            self.part()
        try:
            await self._gone.wait()
        finally:
            self._life.cancel()
            with trio.CancelScope(shield=True):
                await self._gone.wait()

    def part(self, word: bytes = b"", reason: str = "closed on this side") -> None:
        """Begin the orderly close: GOAWAY with a word for the peer; `run` ends when the peer has closed too."""
        if self.closed:
            return
        self.session.go_away(int(ErrorCodes.NO_ERROR), word)
        self._closing = True
        self._life.deadline = trio.current_time() + self._liveness.farewell
        self._lost_because(reason)
        self.flush()

    # -- the two tasks

    async def run(self, first: Sequence[Event]) -> None:
        """Serve the connection until it is over; `first` are the events that came with the handshake."""
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    self._dispatch(first)
                    self.flush()
                    await self._read()
                    nursery.cancel_scope.cancel()
        finally:
            self.part()
            self.session.go_away(int(ErrorCodes.NO_ERROR))
            self.flush()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._carrier)
            self._gone.set()

    async def _read(self) -> None:
        """A ping when nothing was heard for a while, and the end if nothing is heard after that."""
        asked = None
        while True:
            heard = self._heard
            wait = self._liveness.dead_after if asked == heard else self._liveness.ping_after
            with trio.CancelScope(deadline=heard + wait):  # not a task of its own, which takes 2 kB
                await self._read_on()
                return
            if self._heard > heard:
                continue
            if asked == heard:
                self._lost_because(f"silent for {self._liveness.dead_after:g} s")
                return
            asked = heard
            self._ask()

    async def _read_on(self) -> None:
        """To the end of the carrier; cancelled, it loses nothing."""
        try:
            while True:
                data = await self._carrier.receive_some(_READ_BYTES)
                if not data:
                    self._lost_because("the peer closed it")
                    return
                self._heard = trio.current_time()
                self.counts.received += len(data)
                if self.closed:
                    continue  # after the farewell only the end of the carrier matters
                self._dispatch(self.session.receive(data, self._heard))
                self.flush()
        except RemoteProtocolError as error:
            self.flush()
            self._offence = error.code
            self._lost_because(f"the peer broke the protocol: {error.sentence}")
        except trio.BrokenResourceError:
            self._lost_because("the peer is gone")

    async def _write(self) -> None:
        """Takes over whenever the carrier was not ready for a flush; ends after our farewell."""
        try:
            while True:
                self._fill()
                if self._outgoing:
                    chunk, self._outgoing = self._outgoing, _NOTHING
                    self._in_flight = len(chunk)
                    await self._carrier.send_all(chunk)
                    self._in_flight = 0
                    self.counts.sent += len(chunk)
                    self.wake_sender()
                elif self.session.over:
                    if isinstance(self._carrier, trio.abc.HalfCloseableStream):
                        await self._carrier.send_eof()
                    return
                else:
                    await self._to_write.park()
        except trio.BrokenResourceError:
            pass  # the reader finds out, and says so

    # -- out: synchronous, so that no cancellation can tear a record

    def flush(self) -> None:
        """Send what can be sent without waiting; the writer does the rest."""
        if self._in_flight or self._gone.is_set():
            return  # the writer will look again, or nobody ever will
        self._fill()
        if self._outgoing and isinstance(self._carrier, trio.SocketStream):
            try:
                sent = os.write(self._carrier.socket.fileno(), self._outgoing)
            except OSError:
                sent = 0  # not ready, or broken: the writer finds out
            self._outgoing = self._outgoing[sent:] or _NOTHING
            self.counts.sent += sent
            self.wake_sender()
        if self._outgoing or self.session.unsent or self.session.over:
            self._to_write.unpark_all()

    def _fill(self) -> None:
        if not self._outgoing and (data := self.session.data_to_send()):
            self._outgoing = memoryview(data)

    @property
    def congested(self) -> bool:
        """Whether so much waits for the carrier that nobody should add to it."""
        return self._in_flight + len(self._outgoing) + self.session.unsent >= CONGESTED

    async def wait_uncongested(self) -> None:
        """Until the carrier has taken something, or anything else that a sender should look at has changed."""
        await self._uncongested.park()

    def counts_of(self, stream_id: int, path: str) -> ProtocolCounts:
        """Where the stream is counted: by its name if we opened it, or speak it."""
        ours = self.dialled == (stream_id % 2 == 1)  # RFC 9113 section 5.1.1
        return self.counts.of(path, (path,) if ours else self._spoken)

    def wake_sender(self) -> None:
        """One of those that wait, if it need not any more: it wakes the next, by its flush or because it cannot."""
        if not self.congested:
            self._uncongested.unpark()

    def wake_senders(self) -> None:
        """All of them: for one there is news of another kind."""
        self._uncongested.unpark_all()

    # -- in

    def _dispatch(self, events: Sequence[Event]) -> None:
        over: list[Substream] = []
        for event in events:
            match event:
                case StreamOpened(stream_id, path):
                    substream = self._make_substream(self, stream_id, path)
                    substream.counts.opened += 1
                    self._substreams[stream_id] = substream
                    self._on_stream(substream)
                case (
                    DataArrived(stream_id)
                    | StreamEnded(stream_id)
                    | StreamAborted(stream_id)
                    | StreamRefused(stream_id)
                ):
                    if known := self._substreams.get(stream_id):
                        self._tell(known, event)
                        over.append(known)
                case WindowOpened(0):
                    for substream in self._substreams.values():
                        substream.window_opened()
                case WindowOpened(stream_id):
                    if known := self._substreams.get(stream_id):
                        known.window_opened()
                case LimitChanged():
                    self._slots.unpark_all()
                case DrainHeard():
                    self._drain_heard = True
                    self._idle.unpark_all()
                case PongArrived():
                    self._answered()
                case Farewell(code, reason):
                    self._lose(*_farewell(code, reason))
                    self._life.cancel()
        # Only now: the session is ahead of the events, and one that is still to come may concern the same stream.
        for substream in over:
            self.settle(substream)

    @staticmethod
    def _tell(substream: Substream, event: DataArrived | StreamEnded | StreamAborted | StreamRefused) -> None:
        match event:
            case DataArrived(_, data):
                substream.data_arrived(data)
            case StreamEnded():
                substream.ended()
            case StreamAborted(_, code):
                substream.counts.resets[min(code, UNKNOWN_CODE)] += 1
                substream.break_off(lambda: StreamReset(code))
            case StreamRefused(_, status):
                substream.counts.refused[status] += 1
                substream.break_off(_refusal(substream.path, event))

    def settle(self, substream: Substream) -> None:
        """Forget the substream if its stream is over, which makes room for another."""
        if not self.session.streams.alive(substream.stream_id):
            self._substreams.pop(substream.stream_id, None)
            self._slots.unpark()
            self._idle.unpark_all()

    def _lost_because(self, reason: str) -> None:
        self._lose(lambda: ConnectionLost(reason), reason)

    def _lose(self, error: Callable[[], Exception], reason: str) -> None:
        """The first reason stays; all substreams end with it."""
        if self._lost is None:
            self._lost, self._reason = error, reason
        for substream in list(self._substreams.values()):
            substream.break_off(self._lost)
        self._substreams.clear()
        self._slots.unpark_all()
        self._idle.unpark_all()
        self._ponged.unpark_all()


async def shake_hands(carrier: trio.abc.Stream, session: Session) -> list[Event]:
    """Drive the handshake; returns the events that came with its end, which `Connection.run` wants.

    What is to be sent after it (the initiator's last message) leaves with whatever is sent first.
    Raises RemoteProtocolError, or BrokenResourceError if the peer hangs up.
    """
    while True:
        if data := session.data_to_send():
            await carrier.send_all(data)
        received = await carrier.receive_some(_READ_BYTES)
        if not received:
            raise trio.BrokenResourceError("the peer hung up during the handshake")
        events = session.receive(received, trio.current_time())
        if session.established:
            return events


def _refusal(path: str, event: StreamRefused) -> Callable[[], Exception]:
    match event.status:
        case 404:
            spoken = tuple(line for line in _text(event.body).split("\n") if PATH.fullmatch(line))
            return lambda: UnknownProtocol(path, spoken)
        case 429:
            return lambda: Busy(event.retry_after)
        case 403:
            return Forbidden
        case 500:
            return lambda: HandlerFailed(path)
        case status:
            said = f": {_text(event.body)[:200]}" if event.body else ""
            return lambda: Refused(f"status_{status}", f"the peer refused {path} with status {status}{said}")


def _farewell(code: int, word: bytes) -> tuple[Callable[[], Exception], str]:
    if word == FORBIDDEN:
        return Forbidden, "the peer does not deal with this node"
    if word == BUSY:
        return Busy, "the peer is busy"
    said = f" ({_text(word)[:200]})" if word else ""
    reason = f"the peer closed it{said}" if code == ErrorCodes.NO_ERROR else f"the peer gave it up, code {code}{said}"
    return lambda: ConnectionLost(reason), reason


def _text(data: bytes) -> str:
    """What the peer wrote, in characters that cannot harm a terminal or a log."""
    return "".join(c if c == "\n" or c.isprintable() else "?" for c in data.decode("ascii", "replace"))
