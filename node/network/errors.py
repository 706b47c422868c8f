"""What can go wrong on the network, each with a type of its own.

Refusals (`UnknownProtocol`, `Busy`, `Forbidden`, `HandlerFailed`) are answers: the connection is fine. `StreamReset`
and `ConnectionLost` are trio's BrokenResourceError too, so that code written for any stream understands them;
`Closed` is trio's ClosedResourceError.
"""

import trio
from h2.errors import ErrorCodes

from protocols.errors import LocalError, Refused, RemoteError, WorldError


class UnknownProtocol(Refused):
    """404: the peer does not speak this protocol."""

    def __init__(self, path: str, spoken: tuple[str, ...] = ()) -> None:
        known = f"; it speaks {', '.join(spoken)}" if spoken else ""
        super().__init__("unknown_protocol", f"the peer does not speak {path}{known}")
        self.path = path
        self.spoken = spoken
        """Paths that the peer says it speaks."""


class Busy(Refused):
    """429: the peer has too much to do."""

    def __init__(self, retry_after: float | None = None) -> None:
        when = "later" if retry_after is None else f"in {retry_after:g} s"
        super().__init__("busy", f"the peer is busy, try again {when}")
        self.retry_after = retry_after
        """Seconds, if the peer named them."""


class Forbidden(Refused):
    """403: the peer does not deal with us."""

    def __init__(self) -> None:
        super().__init__("forbidden", "the peer does not deal with this node")


class HandlerFailed(Refused):
    """500: the peer's side of the protocol crashed before its first answer."""

    def __init__(self, path: str) -> None:
        super().__init__("handler_failed", f"the peer failed while it answered {path}")
        self.path = path


class StreamReset(RemoteError, trio.BrokenResourceError):
    """The peer gave the stream up. `reset_code` is an HTTP/2 error code: 0 done, 2 it crashed, 8 cancelled."""

    def __init__(self, reset_code: int) -> None:
        try:
            name = ErrorCodes(reset_code).name
        except ValueError:
            name = f"code {reset_code}"
        super().__init__("stream_reset", f"the peer reset the stream ({name})")
        self.reset_code = reset_code


class ConnectionLost(RemoteError, trio.BrokenResourceError):
    """The connection to the peer is gone, and every stream on it."""

    def __init__(self, reason: str) -> None:
        super().__init__("connection_lost", f"the connection is lost: {reason}")
        self.reason = reason


class Closed(LocalError, trio.ClosedResourceError):
    """We closed it ourselves, and used it afterwards."""

    def __init__(self, what: str) -> None:
        super().__init__("closed", f"{what} was closed on this side")


class DialFailed(WorldError):
    """Nobody answers at that address."""

    def __init__(self, address: object, reason: str) -> None:
        super().__init__("dial_failed", f"cannot reach {address}: {reason}")


class HandshakeFailed(RemoteError):
    """Somebody answers, but it is not that peer, or it speaks something else."""

    def __init__(self, address: object, reason: str) -> None:
        super().__init__("handshake_failed", f"{address} answers, but not as that peer: {reason}")


class CannotListen(WorldError):
    """The address cannot be listened on."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__("cannot_listen", f"cannot listen on {host}:{port}: {reason}")


class Refuse(Exception):
    """Raised by a handler before its first answer: no error, but the word to refuse the stream with this status."""

    def __init__(self, status: int, body: str = "", retry_after: float | None = None) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"a refusal's status is 400 to 599, not {status}")
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.retry_after = retry_after
