"""What a node says about itself: one record per service, for people and for machines."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from attrs import asdict, fields, frozen


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

    def degraded(self, reason: str, remedy: str = "", repairs: Sequence[str] = ()) -> None:
        """It runs, but not all of its work succeeds at present. `remedy` is what the user can do, `repairs` name those
        of the service that are offered meanwhile."""

    def recovered(self) -> None:
        """All is well again."""

    def fresh(self) -> None:
        """The data it holds agrees with the world as of now."""

    def beat(self) -> None:
        """It made progress."""


class _Unreported:
    def degraded(self, reason: str, remedy: str = "", repairs: Sequence[str] = ()) -> None: ...

    def recovered(self) -> None: ...

    def fresh(self) -> None: ...

    def beat(self) -> None: ...


UNREPORTED: Report = _Unreported()


@frozen(kw_only=True)
class ServiceHealth:
    """A service at one moment. Times are seconds since 1970 on the wall clock."""

    name: str
    state: State
    since: float
    """When the state or its reason last changed."""
    reason: str = ""
    remedy: str = ""
    """What the user can do about it; empty when there is nothing, or nothing needed."""
    next_try: float | None = None
    failures: int = 0
    """Lives that ended by themselves."""
    bugs: int = 0
    """Errors among what ended its lives that nobody foresaw."""
    last_error: str = ""
    data_at: float | None = None
    """When its data last agreed with the world, if it holds any."""
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
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        return cls(**{**known, "state": State(record["state"]), "needs": tuple(known.get("needs", ()))})


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
        parts.append(f"you can: {service.remedy}")
    if service.data_at is not None:
        parts.append(f"data {_span(now - service.data_at)} old")
    if service.bugs:
        parts.append(f"bugs {service.bugs}")
    return "; ".join(parts)


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def all_healthy(services: Sequence[ServiceHealth]) -> bool:
    return all(service.state is State.HEALTHY for service in services)
