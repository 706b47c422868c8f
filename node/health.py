"""What a node says about itself: one record per service, for people and for machines."""

import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Generic, Protocol, Self, TypeVar

import trio
from attrs import asdict, fields, frozen

from node.causes import AGAIN, NOTHING, Cause

T = TypeVar("T")


class State(StrEnum):
    """Where a service is in its life. Its API is lent out in `UP` states only."""

    WAITING = "waiting"
    """For the services it needs, or for its turn when the node starts."""
    STARTING = "starting"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """Up, but it says itself that it does not do its whole work."""
    RESTARTING = "restarting"
    """It failed and tries again at `next_try`."""
    BLOCKED = "blocked"
    """It failed in a way that only the user can mend; see `remedy`."""
    ENDING = "ending"
    """It was told to end and has not yet: a thread, for one, cannot be killed."""
    STOPPED = "stopped"
    """By the user."""


UP = (State.HEALTHY, State.DEGRADED)


class Report(Protocol):
    """What a running service tells about itself; its `Service` is one, and `UNREPORTED` when there is none."""

    @property
    def beat_every(self) -> float:
        """Seconds within which it has to `beat`, with room to spare; infinite when nobody waits for that."""

    def degraded(self, reason: str, remedy: str = "", repairs: Sequence[str] = ()) -> None:
        """It runs, but not all of its work succeeds at present. `remedy` is what the user can do, `repairs` name those
        of the service that are offered meanwhile."""

    def recovered(self) -> None:
        """All is well again."""

    def fresh(self) -> None:
        """The data it holds agrees with the world as of now."""

    def beat(self) -> None:
        """It made progress. Said by the work itself, in each turn of its loop, and by no timer beside it."""


class _Unreported:
    beat_every = math.inf

    def degraded(self, reason: str, remedy: str = "", repairs: Sequence[str] = ()) -> None: ...

    def recovered(self) -> None: ...

    def fresh(self) -> None: ...

    def beat(self) -> None: ...


UNREPORTED: Report = _Unreported()


class Beating(Generic[T]):
    """What `source` gives, to a loop that beats in each of its turns, and while nothing comes.

    ::

        async for tip in Beating(report, client.tips()): ...
    """

    def __init__(self, report: Report, source: AsyncIterator[T]) -> None:
        """A step of `source` that is cancelled must lose nothing."""
        self._report = report
        self._source = source

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            self._report.beat()
            with trio.move_on_after(self._report.beat_every):
                return await anext(self._source)


async def wait_beating(event: trio.Event, report: Report, longest: float = math.inf) -> None:
    """Return when it is set, and at the latest when the loop that waits has to beat again, or after `longest`."""
    report.beat()
    with trio.move_on_after(min(report.beat_every, longest)):
        await event.wait()


class Working:
    """For a service of many tasks: whether any piece of their work hangs. To wait for something to happen is none."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._since: dict[object, float] = {}

    @contextmanager
    def piece(self) -> Iterator[None]:
        one = object()
        self._since[one] = trio.current_time()
        try:
            yield
        finally:
            del self._since[one]

    async def next(self, changes: AsyncIterator[T]) -> T:
        """The next of `changes`; beats meanwhile, unless something has been worked at for too long."""
        while True:
            oldest = next(iter(self._since.values()), trio.current_time())
            if trio.current_time() - oldest < self._report.beat_every:
                self._report.beat()
            with trio.move_on_after(self._report.beat_every):
                return await anext(changes)


async def stay(report: Report) -> None:
    """For a life whose work is done by whom it is lent to, in its own nursery: it is there while this task runs."""
    while True:
        report.beat()
        await trio.sleep(report.beat_every)


@frozen
class OfferedRepair:
    """What the user may ask of a service now. With a `consequence`, they have to agree to it."""

    name: str
    title: str
    consequence: str


REMEDIES = {
    State.WAITING: f"{NOTHING}it starts as soon as what it waits for is up",
    State.STARTING: f"{NOTHING}it is about to be up",
    State.DEGRADED: f"{NOTHING}it goes on trying by itself",
    State.RESTARTING: f"{NOTHING}{AGAIN}",
    State.BLOCKED: "restart it once the reason is gone",
    State.ENDING: f"{NOTHING}it ends by itself; if that lasts, a thread hangs: end the node and start it again",
    State.STOPPED: "start it",
}
"""Where the service itself says nothing better."""


@frozen(kw_only=True)
class ServiceHealth:
    """A service at one moment. Times are seconds since 1970 on the wall clock."""

    name: str
    state: State
    since: float
    """When the state or its reason last changed."""
    reason: str = ""
    remedy: str = ""
    """What the user can do about it, or that there is nothing; empty for a healthy one only."""
    next_try: float | None = None
    failures: int = 0
    """Lives that ended by themselves."""
    bugs: int = 0
    """Errors among what ended its lives that nobody foresaw."""
    last_error: str = ""
    data_at: float | None = None
    """When its data last agreed with the world, if it holds any."""
    last_success: float | None = None
    """When it was last known to be well: healthy, or with fresh data. A healthy one is well now."""
    causes: tuple[Cause, ...] = ()
    """What made it fail since the node started, the newest last; the oldest are forgotten."""
    repairs: tuple[OfferedRepair, ...] = ()
    """What the user may ask of it beside `actions`."""
    needs: tuple[str, ...] = ()

    @property
    def up(self) -> bool:
        return self.state in UP

    @property
    def actions(self) -> tuple[str, ...]:
        """What the user may ask of it now."""
        match self.state:
            case State.STOPPED | State.ENDING:
                return ("start",)
            case _:
                return ("restart", "stop")

    def as_json(self, now: float) -> dict[str, object]:
        """The record as `/api/v1/health` shows it; `data_age` in seconds."""
        age = None if self.data_at is None else max(0.0, now - self.data_at)
        return {**asdict(self), "state": self.state.value, "data_age": age, "actions": self.actions}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ServiceHealth":
        """What `as_json` made; what it knows beyond this version's fields is left out."""
        known = _known(cls, record)
        return cls(
            **{
                **known,
                "state": State(record["state"]),
                "needs": tuple(known.get("needs", ())),
                "causes": tuple(Cause(**_known(Cause, each)) for each in known.get("causes", ())),
                "repairs": tuple(OfferedRepair(**_known(OfferedRepair, each)) for each in known.get("repairs", ())),
            }
        )


def _known(kind: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: record[field.name] for field in fields(kind) if field.name in record}


def line(service: ServiceHealth, now: float, width: int = 12) -> str:
    """One line for people: name, state, for how long, why, what the node and what the user can do about it.

    `width` is that of the column of names.
    """
    parts = [f"{service.name:<{width}} {service.state.value:<10} for {_span(now - service.since)}"]
    if service.reason:
        parts.append(service.reason)
    if service.next_try is not None:
        parts.append(f"next try in {_span(service.next_try - now)}")
    if service.remedy:
        remedy = service.remedy
        parts.append(f"nothing to do: {remedy[len(NOTHING) :]}" if remedy.startswith(NOTHING) else f"you can: {remedy}")
    if service.data_at is not None:
        parts.append(f"data {_span(now - service.data_at)} old")
    if service.bugs:
        parts.append(f"bugs {service.bugs}")
    return "; ".join(parts)


def details(service: ServiceHealth, now: float) -> list[str]:
    """More lines for people, about a service that is not healthy: why it failed, and what can be asked of it."""
    if service.state is State.HEALTHY:
        return []
    lines = []
    if service.last_success is not None:
        lines.append(f"last well {_span(now - service.last_success)} ago")
    for cause in service.causes[::-1]:
        often = f"{cause.count} times within {_span(cause.last - cause.first)}, last " if cause.count > 1 else ""
        lines.append(f"failed {often}{_span(now - cause.last)} ago: {cause.text}")
    for repair in service.repairs:
        consequence = f" (consequence: {repair.consequence}; with --yes)" if repair.consequence else ""
        lines.append(f"repair {repair.name}: {repair.title}{consequence}")
    return lines


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def page(services: Sequence[ServiceHealth], now: float, warnings: Sequence[str]) -> dict[str, object]:
    """What `/api/v1/health` shows."""
    return {
        "healthy": all_healthy(services),
        "time": now,
        "warnings": list(warnings),
        "services": [service.as_json(now) for service in services],
    }


def all_healthy(services: Sequence[ServiceHealth]) -> bool:
    return all(service.state is State.HEALTHY for service in services)
