"""What a session tells its owner; every event is about the peer's doing."""

from attrs import field, frozen


@frozen
class Established:
    """The handshake is done and the peer's HTTP/2 settings are known."""

    peer: bytes
    """The peer's public key, 32 bytes."""


@frozen
class StreamOpened:
    stream_id: int
    path: str


@frozen
class DataArrived:
    """Bytes to be handed to the reader, who gives the window back with `Session.consumed`."""

    stream_id: int
    data: bytes = field(repr=lambda data: f"<{len(data)} bytes>")


@frozen
class StreamEnded:
    """The peer's half is closed: no more data comes on this stream."""

    stream_id: int


@frozen
class StreamAborted:
    """RST_STREAM: the stream is gone in both directions. `code` is an HTTP/2 error code."""

    stream_id: int
    code: int


@frozen
class StreamRefused:
    """The answer to our opening is a status other than 200; the stream is gone."""

    stream_id: int
    status: int
    body: bytes
    retry_after: float | None
    """Seconds, when the peer named them."""


@frozen
class WindowOpened:
    """More may be sent on a stream, or on all of them (0)."""

    stream_id: int


@frozen
class LimitChanged:
    """How many streams we may have open has changed: see `Session.may_open`."""


@frozen
class DrainHeard:
    """The peer has our `drain`: it opens no more streams."""


@frozen
class PongArrived:
    payload: bytes


@frozen
class Farewell:
    """GOAWAY, the last thing a peer says. `code` is an HTTP/2 error code, `reason` the peer's own bytes."""

    code: int
    reason: bytes


Event = (
    Established
    | StreamOpened
    | DataArrived
    | StreamEnded
    | StreamAborted
    | StreamRefused
    | WindowOpened
    | LimitChanged
    | DrainHeard
    | PongArrived
    | Farewell
)
