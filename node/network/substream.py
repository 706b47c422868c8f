"""One stream of a connection: a trio stream, whose two ends belong to the two tasks that speak one protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio
from h2.errors import ErrorCodes

from node.network.errors import Closed
from protocols.transport.guard import MAX_DATA

if TYPE_CHECKING:
    from node.network.address import PeerId
    from node.network.connection import Connection

CANCEL = int(ErrorCodes.CANCEL)
INTERNAL_ERROR = int(ErrorCodes.INTERNAL_ERROR)
NO_ERROR = int(ErrorCodes.NO_ERROR)
SMALL = 2048
"""Bytes that are joined to small ones before them: handling each costs more than the copy."""


AT_ONCE = 8 * MAX_DATA
"""Bytes that one stream hands to the session before it looks again whether others should have their turn."""


class _OneAtATime:
    """trio's rule that two tasks must not use one direction of a stream at once."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        self._taken = False

    def __enter__(self) -> None:
        if self._taken:
            raise trio.BusyResourceError(self._sentence)
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False


class Substream(trio.abc.HalfCloseableStream):
    """Bytes both ways, in order, each way ended on its own.

    - The reader gets every byte that arrived before an end or a reset, then ``b""`` or the error.
    - Refusals (`UnknownProtocol`, `Busy`, `Forbidden`, `HandlerFailed`) are raised by whichever call comes first,
      since opening does not wait for the answer. `StreamReset` and `ConnectionLost` are BrokenResourceErrors.
    - `aclose` closes in order; the peer, if it still sends, is told that nobody reads. Cancelled, or after a
      `send_all` that was cut short, it resets instead: half a message must not look like a whole one.
    """

    def __init__(self, connection: Connection, stream_id: int, path: str) -> None:
        self._connection = connection
        self._id = stream_id
        self._path = path
        self._streams = connection.session.streams
        self.counts = connection.counts_of(stream_id, path)
        """Of its protocol on this connection."""
        self._chunks: list[bytes | bytearray] = []
        """What has arrived, none of it empty."""
        self._eof = False
        self._closed = False
        self._sent_eof = False
        self._torn = False
        self._broken: Callable[[], Exception] | None = None
        self._arrived = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._receiving = _OneAtATime("another task is receiving from this substream")
        self._sending = _OneAtATime("another task is sending on this substream")

    def __repr__(self) -> str:
        state = "closed" if self._closed else "broken" if self._broken else "open"
        return f"<Substream {self._path} {self._id} with {self.peer.short} {state}>"

    @property
    def peer(self) -> PeerId:
        return self._connection.peer

    @property
    def path(self) -> str:
        return self._path

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def stream_id(self) -> int:
        return self._id

    # -- receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """What has arrived, at most `max_bytes`; ``b""`` when the peer has ended its half."""
        if max_bytes is not None and not isinstance(max_bytes, int):
            raise TypeError(f"max_bytes must be an integer, not {max_bytes!r}")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        with self._receiving:
            if self._readable():
                await trio.lowlevel.checkpoint()
            while not self._readable():
                await self._arrived.park()
            if self._closed:
                raise Closed("the substream")
            if self._chunks:
                return self._take(max_bytes)
            if self._eof:
                return b""
            assert self._broken is not None
            raise self._broken()

    async def wait_broken(self) -> Exception:
        """Until the peer gave the stream up (with or without an end before), refused it, or is gone; says how.

        Takes nothing from what can be received, so it may wait beside a reader; a mere half close does not count.
        """
        await trio.lowlevel.checkpoint()
        while self._broken is None and not self._closed:
            await self._arrived.park()
        return Closed("the substream") if self._broken is None else self._broken()

    def _readable(self) -> bool:
        return bool(self._chunks) or self._eof or self._closed or self._broken is not None

    def _take(self, max_bytes: int | None) -> bytes | bytearray:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        if max_bytes is not None and max_bytes < len(data):
            rest = data if isinstance(data, bytearray) else bytearray(data)
            data = bytes(rest[:max_bytes])
            del rest[:max_bytes]  # moves nothing
            self._chunks.append(rest)
        self._streams.consumed(self._id, len(data))
        self._connection.flush()
        return data

    # -- sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Hand over all of it; waits while the peer, or the connection, takes no more."""
        with self._sending:
            self._check_sendable()
            await trio.lowlevel.checkpoint_if_cancelled()
            torn_before = self._torn
            rest = memoryview(data).cast("B")
            while rest:
                room = min(await self._wait_for_room(), len(rest), AT_ONCE)
                self._streams.send_data(self._id, rest[:room])
                self.counts.sent += room
                rest = rest[room:]
                self._torn = torn_before or bool(rest)
                if not rest or self._connection.congested:  # several frames at once, for fewer calls and wake-ups
                    self._connection.flush()
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Until `send_all` could begin, or would fail at once."""
        with self._sending:
            self._check_sendable(broken=False)
            await trio.lowlevel.checkpoint()
            if self._broken is None:
                await self._wait_for_room(broken=False)
                self._connection.wake_sender()

    async def send_eof(self) -> None:
        """End our half; what the peer sends still arrives."""
        with self._sending:
            if self._sent_eof and not self._closed:
                await trio.lowlevel.checkpoint()
                return
            self._check_sendable()
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            self._sent_eof = True
            self._streams.end_stream(self._id)
            self._connection.settle(self)
            self._connection.flush()

    def _check_sendable(self, *, broken: bool = True) -> None:
        if self._closed:
            raise Closed("the substream")
        if self._sent_eof:
            raise Closed("the sending half of the substream")
        if broken and self._broken is not None:
            raise self._broken()

    async def _wait_for_room(self, *, broken: bool = True) -> int:
        while True:
            self._check_sendable(broken=broken)
            if self._broken is not None:
                return 0
            if not self._connection.congested:
                if room := self._streams.room(self._id):
                    return room
                self._connection.flush()
                self._connection.wake_sender()
                await self._room.park()
            else:
                await self._connection.wait_uncongested()

    # -- ending

    async def aclose(self) -> None:
        """Close in order, without waiting for the peer; resets if cancelled."""
        if not self._closed:
            try:
                await trio.lowlevel.checkpoint_if_cancelled()
            except trio.Cancelled:
                self.reset(CANCEL)
                raise
            if self._torn:
                self.reset(CANCEL)
            else:
                self._streams.close_stream(self._id)
                self._close()
        await trio.lowlevel.checkpoint()

    def reset(self, code: int = CANCEL) -> None:
        """Give the stream up at once, in both directions; nothing happens if it is closed."""
        if not self._closed:
            if self._streams.alive(self._id):
                self.counts.resets[code] += 1
            self._streams.reset_stream(self._id, code)
            self._close()

    def refuse(self, status: int, body: bytes = b"", retry_after: float | None = None) -> bool:
        """Answer an opening with another status than 200 and close; False if it was answered already."""
        if self._closed:
            return True
        refused = self._streams.refuse(self._id, status, body, retry_after)
        if refused:
            self.counts.refused[status] += 1
            self._close()
        return refused

    def _close(self) -> None:
        self._closed = True
        self._chunks = []
        self._wake()
        self._connection.settle(self)
        self._connection.flush()

    # -- what the connection tells us

    def data_arrived(self, data: bytes) -> None:
        self.counts.received += len(data)
        last = self._chunks[-1] if self._chunks else None
        if last is None or len(data) > SMALL:
            self._chunks.append(data)
        elif isinstance(last, bytearray):  # or else small ones take more room than their bytes
            last += data
        elif len(last) > SMALL:
            self._chunks.append(data)
        else:
            self._chunks[-1] = bytearray(last) + data
        self._arrived.unpark_all()

    def ended(self) -> None:
        self._eof = True
        self._arrived.unpark_all()

    def break_off(self, error: Callable[[], Exception]) -> None:
        """The stream is gone: `error` makes what its users are told, a new exception for each."""
        if self._broken is None:
            self._broken = error
        self._wake()

    def window_opened(self) -> None:
        self._room.unpark_all()

    def _wake(self) -> None:
        self._arrived.unpark_all()
        self._room.unpark_all()
        self._connection.wake_senders()
