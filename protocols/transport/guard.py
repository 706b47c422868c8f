"""A walk over HTTP/2 frame headers before h2 sees them (network.md, "What a hostile peer can do to h2").

h2 is correct, but generous: it buffers 16 MB before it looks at a length, remembers every setting ever named, answers
any number of pings. The guard refuses at the frame header what none of our peers sends, and counts what they send
seldom. It looks at nine bytes a frame and never at a payload.
"""

from struct import Struct

from attrs import define, frozen

from protocols.errors import RemoteProtocolError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What the initiator's bytes begin with (RFC 9113 section 3.4)."""
HEADER_BYTES = 9
"""Of a frame (RFC 9113 section 4.1): length 3, type 1, flags 1, stream 4."""

_HEADER = Struct(">HBBB4x")  # length 24 bits, type, flags

# Frame types and flags, RFC 9113 section 6.
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH_PROMISE, PING, GO_AWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 0x01, 0x04, 0x08, 0x20

MAX_DATA = 65_510
"""Bytes of DATA in a frame: with the frame's header it fills one record exactly."""
MAX_HEADER_BLOCK = 4096
MAX_SETTINGS = 48
MAX_UNKNOWN = 1024

_LENGTHS = {
    DATA: (0, MAX_DATA),
    HEADERS: (1, MAX_HEADER_BLOCK),
    PRIORITY: (5, 5),
    RESET: (4, 4),
    SETTINGS: (0, MAX_SETTINGS),
    PING: (8, 8),
    GO_AWAY: (8, 8 + 256),
    WINDOW_UPDATE: (4, 4),
}
"""Type → shortest and longest payload. What is not here is unknown to us, to be ignored (RFC 9113 section 4.1)."""

_REFUSED = {PUSH_PROMISE: "PUSH_PROMISE", CONTINUATION: "CONTINUATION"}


@frozen
class Allowance:
    """How many of a kind may come at once, and how fast the allowance grows back (per second)."""

    burst: float
    rate: float


@frozen
class Budgets:
    """Far above what our own nodes do: a liveness ping each 15 s, a reset for each stream that is given up."""

    resets: Allowance = Allowance(burst=200, rate=20)
    pings: Allowance = Allowance(burst=20, rate=1)
    settings: Allowance = Allowance(burst=20, rate=20 / 60)
    idle: Allowance = Allowance(burst=20, rate=1)
    """Frames that move nothing: empty DATA that ends no stream, PRIORITY, unknown types."""


@define
class _Bucket:
    name: str
    allowance: Allowance
    level: float
    since: float | None = None

    def take(self, now: float) -> None:
        if self.since is not None:
            grown = self.level + (now - self.since) * self.allowance.rate
            self.level = min(self.allowance.burst, grown)
        self.since = now
        if self.level < 1:
            raise RemoteProtocolError(
                "frame_flood",
                f"too many {self.name} frames: {self.allowance.burst:g} at once and "
                f"{self.allowance.rate:.3g} a second are allowed",
            )
        self.level -= 1

    def give_back(self) -> None:
        self.level = min(self.allowance.burst, self.level + 1)


class Guard:
    """Checks one direction of a connection. A RemoteProtocolError out of `check` ends the connection."""

    def __init__(self, budgets: Budgets, *, preface: bool) -> None:
        """`preface`: the bytes begin with the connection preface, which an initiator sends."""
        self._preface = PREFACE if preface else b""
        self._partial = b""
        self._body = 0
        self.resets = _Bucket("RST_STREAM", budgets.resets, budgets.resets.burst)
        self._idle = _Bucket("idle", budgets.idle, budgets.idle.burst)
        self._counted = {
            RESET: self.resets,
            PING: _Bucket("PING", budgets.pings, budgets.pings.burst),
            SETTINGS: _Bucket("SETTINGS", budgets.settings, budgets.settings.burst),
            PRIORITY: self._idle,
        }

    def check(self, data: bytes | bytearray, now: float, start: int = 0) -> int:
        """Walk the next bytes, cut anywhere, from `start` on. `now` is in seconds of any clock that does not run
        backwards.

        Returns how far they may be taken: to their end, or to a reset that is one too many unless some before it turn
        out to be orderly closes. Then call again, from there.
        """
        position, end = start, len(data)
        if self._preface:
            position = min(start + len(self._preface), end)
            if not self._preface.startswith(bytes(data[start:position])):
                raise RemoteProtocolError("bad_preface", "the connection does not begin with the HTTP/2 preface")
            self._preface = self._preface[position - start :]
        if self._partial:
            taken = data[position : position + HEADER_BYTES - len(self._partial)]
            position += len(taken)
            self._partial += bytes(taken)
            if len(self._partial) < HEADER_BYTES:
                return end
            position += self._frame(self._partial, 0, now)
            self._partial = b""
        else:
            position += self._body
        self._body = 0
        while end - position >= HEADER_BYTES:
            try:
                length = self._frame(data, position, now)
            except RemoteProtocolError:
                if position == start or data[position + 3] != RESET:
                    raise
                return position
            position += HEADER_BYTES + length
        self._body = max(0, position - end)
        self._partial = bytes(data[position:])
        return end

    def _frame(self, data: bytes | bytearray, position: int, now: float) -> int:
        """Refuse the frame whose header begins there, or say how long its payload is."""
        high, low, kind, flags = _HEADER.unpack_from(data, position)
        length: int = high << 8 | low
        if kind == DATA and not flags and 0 < length <= MAX_DATA:  # nearly all of them
            return length
        if kind in _REFUSED:
            raise RemoteProtocolError("bad_frame", f"{_REFUSED[kind]} frames are not taken")
        shortest, longest = _LENGTHS.get(kind, (0, MAX_UNKNOWN))
        if not shortest <= length <= longest:
            raise RemoteProtocolError(
                "bad_frame", f"a frame of type {kind} has {length} bytes, allowed are {shortest} to {longest}"
            )
        if kind == DATA:
            if flags & PADDED:
                raise RemoteProtocolError("bad_frame", "padded DATA is not taken")
            if not length and not flags & END_STREAM:
                self._idle.take(now)
        elif kind == HEADERS:
            if flags & (PADDED | WITH_PRIORITY) or not flags & END_HEADERS:
                raise RemoteProtocolError("bad_frame", "HEADERS must be one frame without padding and priority")
        elif (bucket := self._counted.get(kind)) is not None:
            bucket.take(now)
        elif kind not in _LENGTHS:
            self._idle.take(now)
        return length
