"""The steps of which an IO-free protocol is made.

A role of a protocol is an ``async def`` that awaits steps and nothing else. It knows no event loop: a driver runs it by
``send``, ``throw`` and ``close``, carries out each step that it yields, and gives the result back. The node's driver
(:mod:`node.network.conversation`) uses a substream, a store and a wallet; the tests' (:mod:`protocols.testing`) uses
two lists. A forgotten ``await`` on a step is an error of mypy's ``unused-awaitable``.

A dialogue is never resumed: after a crash it is begun anew from what was persisted.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeAlias, TypeVar, overload

from attrs import field, frozen

from protocols.codec import Message, Rejected, printable
from protocols.errors import PeerGone, Refused, RemoteError, RemoteProtocolError, WorldError

R = TypeVar("R")
M = TypeVar("M", bound=Message)
M1 = TypeVar("M1", bound=Message)
M2 = TypeVar("M2", bound=Message)
M3 = TypeVar("M3", bound=Message)


class Step(Generic[R]):
    """Something that the driver must carry out; its result is of type R."""

    __slots__ = ()

    def __await__(self) -> Generator[Step[Any], Any, R]:
        result: R = yield self
        return result


class Fact:
    """What a protocol wants remembered: the node makes it a command on the position (:mod:`node.position.facts`)."""

    __slots__ = ()


Dialogue: TypeAlias = Coroutine[Step[Any], Any, R]


@frozen
class Send(Step[None]):
    """Send one message. Raises PeerGone, or PeerSilent when the peer does not take it in time."""

    message: Message


@frozen
class Persist(Step[None]):
    """Write the fact to disk, through a command on the position, before the next line runs.

    Never cancelled half-way. A refusal by the position is raised here as a `LocalError`, a disk that fails as a
    `WorldError`; in both cases nothing was written.
    """

    fact: Fact


@frozen
class Receive(Step[M]):
    """Wait for one message of one of these kinds, at most `within` seconds. Made by :func:`receive`.

    Raises PeerGone, PeerSilent, RemoteProtocolError (any other message), or Refused when the peer ends the dialogue
    with a reason that is not among `kinds`.
    """

    kinds: tuple[type[M], ...]
    within: float


@overload
def receive(first: type[M1], /, *, within: float) -> Step[M1]: ...
@overload
def receive(first: type[M1], second: type[M2], /, *, within: float) -> Step[M1 | M2]: ...
@overload
def receive(first: type[M1], second: type[M2], third: type[M3], /, *, within: float) -> Step[M1 | M2 | M3]: ...
def receive(*kinds: type[Message], within: float) -> Step[Any]:
    """The next message, typed as the union of the kinds that are allowed here."""
    return Receive(kinds, within)


class Ask(Step[R]):
    """A question to whoever runs the dialogue: the chain, the wallet, the oracle, a person.

    A subclass fixes the type of the answer: ``class Fund(Ask[Funding])``. When the peer is gone while the answer is
    being looked for, the question is cancelled and PeerGone raised.
    """

    __slots__ = ()


@frozen
class Compute(Ask[R]):
    """A pure, picklable, heavy function: inline in tests, in a worker process in the node.

    Goes on when the peer is gone: it ends soon, it may be what is left to do with the peer's last message, and a peer
    must not be able to have worker processes killed.
    """

    function: Callable[..., R]
    args: tuple[object, ...] = field(repr=False)  # may hold keys


def accept(step: Receive[Any], message: Message) -> None:
    """Raise unless the message is one that the dialogue waits for: the rule of every driver."""
    if isinstance(message, step.kinds):
        return
    if isinstance(message, Rejected):
        raise Refused(message.code, message.sentence)
    allowed = " or ".join(kind.__name__ for kind in step.kinds)
    raise RemoteProtocolError("unexpected_message", f"expected {allowed}, got {type(message).__name__}")


def rejection(error: BaseException) -> Rejected | None:
    """What the peer is told when our dialogue ends with this error: the reason if it is the peer's, no detail of ours.

    None when the peer is gone or has ended the dialogue itself.
    """
    if isinstance(error, PeerGone | Refused):
        return None
    if isinstance(error, RemoteError):
        return Rejected(error.code, printable(error.sentence))
    if isinstance(error, WorldError):
        return Rejected("unavailable", "the other side cannot go on now because of a failure outside of both")
    return Rejected("declined", "the other side cannot go on")
