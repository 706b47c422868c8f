"""What ends the lives of services: sorted, in words for people, and counted by cause."""

from collections.abc import Iterator, Sequence

import trio
from attrs import evolve, frozen

from node.errors import Disconnected
from protocols.errors import CodedError, WorldError

EXPECTED = (WorldError, OSError, trio.BrokenResourceError, trio.TooSlowError)
"""What the world does to a service. Anything else that ends a life is a bug of ours, `NeedsUser` aside."""

NOTHING = "nothing: "
"""What a remedy begins with when the node helps itself."""

AGAIN = "it tries again by itself"

REMEDIES = {
    "no_electrum_server": "check the network, or configure another chain server (--electrum)",
    "server_lost": f"{NOTHING}the next chain server is tried by itself",
    "disk_full": f"make room on the disk; {AGAIN}",
    "disk_error": f"see to the disk of the data directory; {AGAIN}",
    "backup_failed": f"see to the backup's path; {AGAIN}",
    "dial_failed": f"check the network and the maker's address; {AGAIN}",
    "handshake_failed": f"check the maker's address, which names its key; {AGAIN}",
    "wrong_network": "take a maker of this node's network",
    "cannot_listen": "end what uses the port, or give another with --listen",
    "no_worker": "see to free memory; worker processes are started again by themselves",
    "stuck": f"{NOTHING}it begins anew by itself; if it gets stuck again and again, report the log",
}
"""What can be done about an error that ends a life, where that is more than to wait."""


MOST_CAUSES = 8


@frozen
class Cause:
    """What made a service fail: errors of one type and code (without a code: of one text), however often."""

    text: str
    """Of the last one."""
    count: int
    first: float
    last: float
    """When; seconds since 1970."""
    kind: str = ""


def with_cause(causes: tuple[Cause, ...], kind: str, text: str, now: float) -> tuple[Cause, ...]:
    """It happened again, or for the first time; the newest stands last."""
    before = next((cause for cause in causes if cause.kind == kind), Cause(text, 0, now, now, kind))
    newest = evolve(before, text=text, count=before.count + 1, last=now)
    return (*(cause for cause in causes if cause.kind != kind), newest)[-MOST_CAUSES:]


def leaves(error: Exception) -> Iterator[Exception]:
    """The exceptions of a group, however deep; of any other error, itself."""
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def kind_of(error: Exception) -> str:
    """What errors of one cause have in common: their text may name a port, or a time."""
    match error:
        case Disconnected():
            return f"{error.code} {error.service}"
        case CodedError():
            return f"{type(error).__name__} {error.code}"
        case _:
            return describe(error)


def remedy_for(error: Exception) -> str:
    if isinstance(error, CodedError):
        return REMEDIES.get(error.code, "")
    if isinstance(error, EXPECTED):
        return ""
    return f"{NOTHING}{AGAIN}; this is a bug: report the log"


def describe(error: BaseException) -> str:
    """One line for people: the sentence of an error of ours, else its type and text."""
    if isinstance(error, CodedError):
        return error.sentence
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def describe_all(errors: Sequence[BaseException]) -> str:
    return "; ".join(describe(error) for error in errors)
