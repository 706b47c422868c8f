"""Streams by HTTP/2 frames: one engine a side, and both sides open streams (network.md, "Streams").

What h2 does not do is here: who has ended what, windows given back at two speeds, the answer's status that rides
with its first data, refusals with a body, and what may still arrive on a stream that we have given up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h2.events
from attrs import define
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from protocols.errors import LocalError, RemoteProtocolError
from protocols.transport.engine import engine
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
from protocols.transport.guard import HEADER_BYTES, MAX_DATA, Guard
from protocols.transport.http2 import QUICK, SessionLimits

OK = 200
MAX_REFUSAL = 4096
"""Bytes of a refusal's body."""


@define
class _Stream:
    id: int
    path: str
    ours: bool
    answered: bool = False
    sent_end: bool = False
    received_end: bool = False
    unreturned: int = 0
    held: int = 0
    """Bytes that nobody has read."""
    lent: int = 0
    """Bytes of its window beyond the usual."""
    refusal: _Refusal | None = None


@define
class _Refusal:
    status: int
    retry_after: float | None
    body: bytes = b""


class Streams:
    """One side's streams: plaintext in, events and plaintext out. Any error out of `receive` ends the connection."""

    def __init__(self, limits: SessionLimits, *, initiator: bool, own: bytes, peer: bytes | None) -> None:
        """`own` and `peer` are public keys; the responder learns `peer` from the handshake (set it then)."""
        self._limits = limits
        self._initiator = initiator
        self._own = own.hex().encode()
        self.peer = peer
        self._guard = Guard(limits.budgets, preface=not initiator)
        self._h2 = engine(limits, initiator=initiator)
        self._streams: dict[int, _Stream] = {}
        self._ours = 0
        self._next_id = 1 if initiator else 2
        self._refused_streams: list[int] = []
        self._unreturned = 0
        self._lent = 0
        self._outgoing = bytearray()
        self._answers = 0
        self._settings_heard = False
        self._draining = False
        self._closed = False
        self._farewell_heard = False

    # -- what the peer sends

    def receive(self, data: bytes | bytearray, now: float) -> list[Event]:
        """Take plaintext, cut anywhere. `now`: see :meth:`Guard.check`."""
        self._collect()
        before = len(self._outgoing)
        events: list[Event] = []
        start = 0
        while start < len(data):
            end = self._guard.check(data, now, start)
            self._take(data if end - start == len(data) else data[start:end], events)
            start = end
        for stream_id in self._refused_streams:
            # A stream may be over already: only now, behind the whole batch, does h2 know.
            if not self._closed and self._h2.lives(stream_id):
                self._h2.reset_stream(stream_id, ErrorCodes.NO_ERROR)
        self._refused_streams.clear()
        self._return_to_connection()
        self._collect()
        self._answers += len(self._outgoing) - before
        if self._answers > self._limits.unsent_answers:
            raise RemoteProtocolError("answers_unread", "the peer asks for answers and does not read them")
        return events

    def _take(self, data: bytes | bytearray, events: list[Event]) -> None:
        try:
            for happened in self._h2.receive_data(data):
                react = _REACTIONS.get(type(happened))
                if react is None:
                    raise RemoteProtocolError("bad_frame", f"{type(happened).__name__} is no part of the protocol")
                react(self, happened, events)
        except RemoteProtocolError:
            raise
        except Exception as error:
            # Whatever a parser of hostile bytes raises, the bytes are to blame.
            raise RemoteProtocolError("bad_frame", f"{type(error).__name__}: {error}") from error

    @property
    def settings_heard(self) -> bool:
        """Whether the peer's settings have arrived."""
        return self._settings_heard

    @property
    def farewell_heard(self) -> bool:
        """Whether the peer has said its last."""
        return self._farewell_heard

    def consumed(self, stream_id: int, count: int) -> None:
        """The reader took `count` bytes: let the peer send as many again, in steps of half of its window as it is."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.received_end:
            return
        stream.unreturned += count
        stream.held -= count
        if stream.unreturned >= (self._limits.stream_window + stream.lent) // 2:
            if not stream.held:
                stream.unreturned += self._lend(stream)
            self._h2.increment_flow_control_window(stream.unreturned, stream_id)
            stream.unreturned = 0

    def _lend(self, stream: _Stream) -> int:
        """Let its window grow by as much as its reader has just taken, if there is that much."""
        room = min((QUICK - 1) * self._limits.stream_window - stream.lent, self._limits.quick_windows - self._lent)
        lent = min(room, stream.unreturned)
        stream.lent += lent
        self._lent += lent
        return lent

    def _return_to_connection(self) -> None:
        self._unreturned += self._h2.ignored
        self._h2.ignored = 0
        if self._unreturned >= self._limits.connection_window // 8 and not self._closed:
            self._h2.increment_flow_control_window(self._unreturned)
            self._unreturned = 0

    def _requested(self, event: h2.events.RequestReceived, events: list[Event]) -> None:
        headers = {bytes(name): bytes(value) for name, value in event.headers}
        expected = {b":method": b"POST", b":scheme": b"cfd", b":authority": self._own}
        for name, value in expected.items():
            if headers.get(name) != value:
                raise RemoteProtocolError(
                    "bad_request", f"a stream was opened with {name.decode()} {headers.get(name)!r}, must be {value!r}"
                )
        path = headers[b":path"].decode("ascii", "backslashreplace")
        self._streams[event.stream_id] = _Stream(event.stream_id, path, ours=False)
        events.append(StreamOpened(event.stream_id, path))

    def _responded(self, event: h2.events.ResponseReceived, events: list[Event]) -> None:
        stream = self._streams[event.stream_id]
        headers = {bytes(name): bytes(value) for name, value in event.headers}
        status = int(headers[b":status"])
        stream.answered = True
        if status != OK:
            if not 400 <= status <= 599:
                raise RemoteProtocolError("bad_refusal", f"a stream was answered with status {status}")
            stream.refusal = _Refusal(status, _seconds(headers.get(b"retry-after")))

    def _data(self, event: h2.events.DataReceived, events: list[Event]) -> None:
        self._unreturned += event.flow_controlled_length
        stream = self._streams[event.stream_id]
        if stream.refusal is not None:
            stream.refusal.body += event.data
            if len(stream.refusal.body) > MAX_REFUSAL:
                raise RemoteProtocolError("bad_refusal", f"a refusal's body has more than {MAX_REFUSAL} bytes")
        elif event.data:
            stream.held += len(event.data)
            events.append(DataArrived(event.stream_id, event.data))

    def _ended(self, event: h2.events.StreamEnded, events: list[Event]) -> None:
        stream = self._streams[event.stream_id]
        stream.received_end = True
        if stream.refusal is not None:
            self._refused(stream, stream.refusal, events)
            return
        events.append(StreamEnded(event.stream_id))
        self._forget_if_done(stream)

    def _refused(self, stream: _Stream, refusal: _Refusal, events: list[Event]) -> None:
        events.append(StreamRefused(stream.id, refusal.status, refusal.body, refusal.retry_after))
        self._forget(stream)
        self._refused_streams.append(stream.id)

    def _reset(self, event: h2.events.StreamReset, events: list[Event]) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        if stream.received_end and (stream.ours or stream.answered):
            # The orderly close of a side that had ended its half: no rapid reset, so it costs the peer nothing. (One
            # that opens, ends and resets at once is rapid all the same.)
            self._guard.resets.give_back()
        if stream.refusal is not None:
            self._refused(stream, stream.refusal, events)
            return
        events.append(StreamAborted(stream.id, int(event.error_code or 0)))
        self._forget(stream)

    def _settings(self, event: h2.events.RemoteSettingsChanged, events: list[Event]) -> None:
        self._settings_heard = True
        for code in event.changed_settings:
            if not isinstance(code, SettingCodes):
                # To be ignored (RFC 9113 section 6.5.2); h2 would keep every one for ever.
                self._h2.remote_settings.pop(code, None)
        events += [LimitChanged(), WindowOpened(0)]

    def _acknowledged(self, event: h2.events.SettingsAcknowledged, events: list[Event]) -> None:
        if SettingCodes.MAX_CONCURRENT_STREAMS in event.changed_settings:
            events.append(DrainHeard())

    def _window(self, event: h2.events.WindowUpdated, events: list[Event]) -> None:
        events.append(WindowOpened(event.stream_id))

    def _pong(self, event: h2.events.PingAckReceived, events: list[Event]) -> None:
        events.append(PongArrived(event.ping_data))

    def _nothing(self, event: h2.events.Event, events: list[Event]) -> None:
        pass

    def _terminated(self, event: h2.events.ConnectionTerminated, events: list[Event]) -> None:
        self._closed = self._farewell_heard = True
        events.append(Farewell(int(event.error_code or 0), event.additional_data or b""))

    # -- what we send

    @property
    def may_open(self) -> bool:
        """Whether one more stream of ours is allowed now."""
        usable = not (self._closed or self._draining or self.exhausted)
        return usable and self._ours < self.streams_allowed

    @property
    def exhausted(self) -> bool:
        """Whether all our stream ids are used: a further stream needs another connection (RFC 9113 section 5.1.1)."""
        return self._next_id > self._limits.last_stream

    @property
    def streams_allowed(self) -> int:
        """How many streams of ours the peer takes at once; 0 when it is draining."""
        return min(self._limits.streams, self._h2.remote_settings.max_concurrent_streams)

    @property
    def open_streams(self) -> int:
        """Streams of either side that are not over."""
        return len(self._streams)

    def open_stream(self, path: str) -> int:
        """Begin a stream; its headers wait for the first data, or for the next flush."""
        if self.exhausted:
            raise LocalError("streams_exhausted", f"all stream ids up to {self._limits.last_stream} are used")
        if not self.may_open:
            raise LocalError("too_many_streams", f"{self._ours} streams are open, allowed are {self.streams_allowed}")
        assert self.peer is not None
        stream_id, self._next_id = self._next_id, self._next_id + 2
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"cfd"),
            (b":authority", self.peer.hex().encode()),
            (b":path", path.encode("ascii")),
        ]
        self._h2.send_headers(stream_id, headers)
        self._streams[stream_id] = _Stream(stream_id, path, ours=True)
        self._ours += 1
        return stream_id

    def alive(self, stream_id: int) -> bool:
        """Whether the stream is still there to send on. Nothing below does harm to a stream that is gone."""
        return stream_id in self._streams and not self._closed

    def room(self, stream_id: int) -> int:
        """How many bytes `send_data` takes now: what windows allow."""
        if not self.alive(stream_id):
            return 0
        return max(0, self._h2.local_flow_control_window(stream_id))

    def send_data(self, stream_id: int, data: bytes | memoryview) -> None:
        """Send at most `room` bytes, behind the status 200 if this is our first answer."""
        stream = self._writable(stream_id)
        if stream is None:
            return
        self._answer(stream)
        longest = min(self._h2.max_outbound_frame_size, MAX_DATA)
        for start in range(0, len(data) or 1, longest):
            self._h2.send_data(stream_id, data[start : start + longest])

    def end_stream(self, stream_id: int) -> None:
        """Close our half."""
        stream = self._writable(stream_id)
        if stream is None:
            return
        stream.sent_end = True
        self._owe(stream, HEADER_BYTES)
        if stream.ours or stream.answered:
            self._h2.end_stream(stream_id)
        else:
            self._answer(stream, end=True)
        self._forget_if_done(stream)

    def close_stream(self, stream_id: int) -> None:
        """Close our half, and free the stream if the peer has not closed its own: nobody reads it any more."""
        self.end_stream(stream_id)
        self.reset_stream(stream_id, ErrorCodes.NO_ERROR)

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Give the stream up in both directions."""
        if not self.alive(stream_id):
            return
        stream = self._streams[stream_id]
        self._owe(stream, HEADER_BYTES + 4)
        self._h2.reset_stream(stream_id, code)
        self._forget(stream)

    def refuse(self, stream_id: int, status: int, body: bytes = b"", retry_after: float | None = None) -> bool:
        """Answer with a status other than 200, and be done with the stream; False if it was answered before."""
        stream = self._writable(stream_id)
        if stream is None:
            return True
        if stream.ours or stream.answered:
            return False
        headers = [(b":status", str(status).encode())]
        if retry_after is not None:
            headers.append((b"retry-after", f"{max(0.0, retry_after):.3f}".encode()))
        self._h2.send_headers(stream_id, headers)
        stream.answered = True
        self._owe(stream, 2 * HEADER_BYTES + len(body))
        if body := body[: min(MAX_REFUSAL, self.room(stream_id))]:
            self._h2.send_data(stream_id, body)
        self.close_stream(stream_id)
        return True

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life: 8 bytes that come back in a `PongArrived`."""
        if not self._closed:
            self._h2.ping(payload)

    def drain(self) -> None:
        """Take no more streams, open none. `DrainHeard` says that the peer knows."""
        if not self._closed and not self._draining:
            self._draining = True
            self._h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 0})

    def go_away(self, code: int, reason: bytes = b"") -> None:
        """The last thing we say."""
        if not self._closed:
            self._closed = True
            self._h2.close_connection(code, reason[:256])

    @property
    def unsent(self) -> int:
        """Bytes that wait to be taken."""
        return len(self._outgoing) + self._h2.unsent

    def take(self) -> bytes:
        """What is to be sent now."""
        self._answers = 0
        if not self._outgoing:
            return self._h2.data_to_send()
        self._collect()
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def _collect(self) -> None:
        if data := self._h2.data_to_send():
            self._outgoing += data

    def _writable(self, stream_id: int) -> _Stream | None:
        stream = self._streams.get(stream_id)
        if stream is None or self._closed:
            return None
        return None if stream.sent_end else stream

    def _owe(self, stream: _Stream, count: int) -> None:
        """Count what the peer makes us send by opening a stream, and what no window bounds, beside acknowledgements."""
        if not stream.ours:
            self._answers += count

    def _answer(self, stream: _Stream, *, end: bool = False) -> None:
        if not stream.ours and not stream.answered:
            stream.answered = True
            self._h2.send_headers(stream.id, [(b":status", b"200")], end_stream=end)

    def _forget_if_done(self, stream: _Stream) -> None:
        if stream.sent_end and stream.received_end:
            self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        if self._streams.pop(stream.id, None) is not None:
            self._ours -= stream.ours
            self._lent -= stream.lent


def _seconds(text: bytes | None) -> float | None:
    """A retry-after of digits and at most one point; anything else says nothing."""
    if text is None or len(text) > 16 or not text.replace(b".", b"", 1).isdigit():
        return None
    return float(text)


_REACTIONS: dict[type[h2.events.Event], Callable[[Streams, Any, list[Event]], None]] = {
    h2.events.RequestReceived: Streams._requested,
    h2.events.ResponseReceived: Streams._responded,
    h2.events.DataReceived: Streams._data,
    h2.events.StreamEnded: Streams._ended,
    h2.events.StreamReset: Streams._reset,
    h2.events.WindowUpdated: Streams._window,
    h2.events.RemoteSettingsChanged: Streams._settings,
    h2.events.SettingsAcknowledged: Streams._acknowledged,
    h2.events.PingAckReceived: Streams._pong,
    h2.events.ConnectionTerminated: Streams._terminated,
    h2.events.PingReceived: Streams._nothing,
    h2.events.PriorityUpdated: Streams._nothing,
    h2.events.AlternativeServiceAvailable: Streams._nothing,
    h2.events.UnknownFrameReceived: Streams._nothing,
}
"""Not in each connection: bound, they take 2 kB."""
