"""What happens, told elsewhere: to webhooks and services by Apprise, and to a program. Off unless it is configured.

Each target has a task of its own: one that is slow or away delays nobody. Events of positions are read from the event
store behind a cursor of the target's, so that the store itself is the queue: what could not be told is told when the
target, or the node, is back, unless it is more than a day old by then; after a kill one may be told twice. Health is
told as it stands, and only once it stood so for a while; a service that fails again and again is summed up.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import structlog
import trio
from attrs import Factory, asdict, define, field, frozen
from pydantic import SecretStr

from node.causes import NOTHING
from node.clock import Clock
from node.errors import Disconnected
from node.eventstore.interface import Cursor, EventStore, Recorded
from node.eventstore.subscriptions import Subscription
from node.health import UP, Beating, Report, ServiceHealth, State
from node.position.events import STREAM, order_of
from node.position.state import Position
from node.supervision import Service
from node.values import without_secrets
from protocols.errors import LocalError, WorldError

if TYPE_CHECKING:
    from node.config import NotifyTable
    from node.position.book import Positions

NAME = "notifications"
SENT_WITHIN = 30.0
"""Seconds that a target has to take one."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds before the next try."""
OLDEST = 86_400.0
"""Seconds after which nobody need be told any more."""
LOOK_EVERY = 5.0
"""Seconds between looks at the services."""
OFTEN, WITHIN = 5, 3600.0
"""So many failures within so many seconds are told even if the service is well in between."""
EVENTS_OF = "events"
REMEDY = "see to it that the target is there, or correct [notify]; it goes on trying by itself"

Severity = Literal["info", "warning", "failure"]

log = structlog.get_logger("notify")

EVENTS: Mapping[str, tuple[str, Severity, str]] = {
    "OrderPlaced": ("ordered", "info", "was ordered"),
    "OrderRejected": ("refused", "warning", "was refused by the maker"),
    "SetupFailed": ("refused", "warning", "came to nothing"),
    "LockAbandoned": ("refused", "warning", "came to nothing: its lock reached no mempool"),
    "LockConfirmed": ("opened", "info", "is open"),
    "RolloverSigned": ("rollover", "info", "is rolled over"),
    "RolloverRejected": ("rollover", "warning", "could not be rolled over: the maker refused"),
    "RolloverFailed": ("rollover", "warning", "could not be rolled over"),
    "CloseProposed": ("closing", "info", "is to be closed"),
    "CloseRejected": ("closing", "warning", "could not be closed: the maker refused"),
    "CloseFailed": ("closing", "warning", "could not be closed"),
    "CommitPublishing": ("closing", "warning", "ends by its commit, which this node publishes"),
    "CommitPublished": ("closing", "warning", "has its commit on the chain: the price at expiry settles it"),
    "ClosePublished": ("closing", "info", "is closed, once that is final"),
    "SpendPublished": ("closing", "info", "is settled, once that is final"),
    "CetPublished": ("closing", "info", "is settled, once that is final"),
    "RefundPublished": ("closing", "warning", "is refunded, once that is final"),
    "CloseConfirmed": ("ended", "info", "is closed"),
    "SpendConfirmed": ("ended", "info", "is settled"),
    "CetConfirmed": ("ended", "info", "is settled"),
    "RefundConfirmed": ("ended", "warning", "is refunded"),
    "PunishConfirmed": ("ended", "warning", "is over: the peer published a revoked commit and lost everything in it"),
    "RevokedCommitSeen": ("alarm", "failure", "is under attack: the peer published a commit that it had revoked"),
    "ConfirmationLost": ("alarm", "warning", "lost a confirmation: the chain was reorganised"),
    "Recovered": ("alarm", "warning", "was restored from a backup"),
}
"""What is told of which event: its kind, how grave it is, what it means for the position."""


@frozen(kw_only=True)
class Notification:
    """One thing to tell."""

    kind: str
    severity: Severity
    title: str
    body: str
    at: float
    """When it happened; seconds since 1970."""
    order_id: str | None = None


class Target(Protocol):
    """Somebody who is told."""

    @property
    def label(self) -> str:
        """What people know it by; nothing secret."""

    @property
    def key(self) -> str:
        """By which it is known again after a restart."""

    async def send(self, note: Notification) -> None:
        """Raises WorldError when it was not taken."""


@define(eq=False)
class Webhook:
    """One of Apprise's targets. Its URL may hold a secret in any part; shown is no more than its scheme."""

    label: str
    url: SecretStr = field(repr=False)
    _one: trio.CapacityLimiter = Factory(partial(trio.CapacityLimiter, 1))
    """A thread that hangs is waited for by none but this target."""

    @property
    def key(self) -> str:
        return hashlib.sha256(self.url.get_secret_value().encode()).hexdigest()[:16]

    async def send(self, note: Notification) -> None:
        with trio.move_on_after(SENT_WITHIN):
            call = partial(_by_apprise, self.url.get_secret_value(), note)
            problem = await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._one)
            if problem:
                raise WorldError("not_told", f"{self.label} {problem}")
            return
        raise WorldError("not_told", f"{self.label} did not answer within {SENT_WITHIN:.0f} s")


def _by_apprise(url: str, note: Notification) -> str:
    """Why it was not sent; empty if it was. Apprise takes a moment to import, and its log and errors show URLs."""
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    target = apprise.Apprise()
    try:
        if not target.add(url):
            return "is no URL that Apprise knows"
        sent = target.notify(body=note.body, title=note.title, notify_type=note.severity)
    except Exception as error:  # noqa: BLE001  whatever it is, its text may show the URL
        return f"could not be asked: {type(error).__name__}"
    return "" if sent else "was not reached, or refused"


@frozen
class Program:
    """Run for each notification, with a JSON object on its standard input."""

    command: Sequence[str]

    @property
    def label(self) -> str:
        return f"command {self.command[0]}"

    @property
    def key(self) -> str:
        return hashlib.sha256("\0".join(self.command).encode()).hexdigest()[:16]

    async def send(self, note: Notification) -> None:
        said = json.dumps(asdict(note)).encode()
        try:
            with trio.fail_after(SENT_WITHIN):
                done = await trio.run_process(
                    self.command, stdin=said, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
                )
        except trio.TooSlowError:
            raise WorldError("not_told", f"{self.label} did not end within {SENT_WITHIN:.0f} s") from None
        except OSError as error:
            raise WorldError("not_told", f"{self.label}: {error.strerror or error}") from None
        if done.returncode != 0:
            raise WorldError("not_told", f"{self.label} ended with status {done.returncode}")


def targets(config: NotifyTable) -> list[Target]:
    """All that are configured."""
    urls = [url.get_secret_value() for url in config.urls]
    found: list[Target] = [
        Webhook(f"notify.urls {number} ({url.partition('://')[0]})", SecretStr(url))
        for number, url in enumerate(urls, 1)
    ]
    return [*found, Program(config.command)] if config.command else found


@define
class _Seen:
    """What was seen of one service."""

    well: bool
    at: float
    """Since when it is so."""
    failures: int
    told: bool = True
    """Whether it was last told to be well; nothing was yet, and then it counts as well."""
    recent: deque[float] = Factory(deque)
    summed_up: float = -WITHIN


@define
class HealthNews:
    """What is worth telling of the services, by looks at their records."""

    quiet: float
    """Seconds for which a service has to be as it is before that is told."""
    _seen: dict[str, _Seen] = Factory(dict)

    def look(self, records: Iterable[ServiceHealth], now: float) -> list[tuple[Severity, str]]:
        """Sentences; `now` in seconds of any clock that goes on."""
        found: list[tuple[Severity, str]] = []
        for record in records:
            well = record.state is State.HEALTHY
            seen = self._seen.setdefault(record.name, _Seen(well, now, record.failures))
            if well is not seen.well:
                seen.well, seen.at = well, now
            seen.recent += [now] * (record.failures - seen.failures)
            seen.failures = record.failures
            while seen.recent and seen.recent[0] <= now - WITHIN:
                seen.recent.popleft()
            if well is not seen.told and now - seen.at >= self.quiet:
                seen.told = well
                found.append(("info", f"{record.name} is well again") if well else ("warning", _unwell(record)))
            elif seen.told and len(seen.recent) >= OFTEN and now - seen.summed_up >= WITHIN:
                seen.summed_up = now
                found.append(
                    ("warning", f"{record.name} failed {len(seen.recent)} times within an hour: {record.last_error}")
                )
        return found


def _unwell(record: ServiceHealth) -> str:
    remedy = "" if not record.remedy or record.remedy.startswith(NOTHING) else f"; you can: {record.remedy}"
    return f"{record.name} is {record.state.value}: {record.reason or 'no reason is known'}{remedy}"


class Notifier:
    """The service: tells every target what it wants to know."""

    def __init__(
        self,
        config: NotifyTable,
        name: str,
        *,
        clock: Clock,
        store: Service[EventStore],
        positions: Service[Positions],
        health: Callable[[], Iterable[ServiceHealth]],
    ) -> None:
        """`name` is what people know this node by."""
        self._config = config
        self._name = name
        self._clock = clock
        self._store = store
        self._positions = positions
        self._health = health
        self._problems: dict[str, str] = {}
        self._told: dict[str, int] = {}  # by target, the last event that it was told of

    async def run(self, *, report: Report, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._problems.clear()
        async with trio.open_nursery() as nursery:
            for target in targets(self._config):
                if set(self._config.events) - {"health"}:
                    nursery.start_soon(self._tell_events, target, report)
                if "health" in self._config.events:
                    nursery.start_soon(self._tell_health, target, report)
            task_status.started()

    async def _tell_events(self, target: Target, report: Report) -> None:
        while True:
            await self._store.until(*UP)
            try:
                with self._store.lent() as store:
                    await self._follow(store, target, report)
            except Disconnected:
                await trio.sleep(1)
            except (WorldError, LocalError) as error:  # a store that takes nothing: of health is told all the same
                self._is(EVENTS_OF, error.sentence, report)
                await trio.sleep(LONGEST_PAUSE)

    async def _follow(self, store: EventStore, target: Target, report: Report) -> None:
        name = f"{NAME}-{target.key}"
        if await store.cursor(name) is None:
            await store.ack(Cursor(name, store.last_id))  # a new target is told what happens from now on
        self._is(EVENTS_OF, None, report)
        subscription = Subscription(store, name)
        said: dict[str, str] = {}
        async for recorded in Beating(report, subscription):
            note = self._about(recorded)
            if note is None:
                continue
            again = said.get(recorded.stream) == recorded.name  # such as a rollover that is tried every few minutes
            said[recorded.stream] = recorded.name
            if note.kind == "ended":
                del said[recorded.stream]
            if recorded.id > self._told.get(target.key, 0):
                if not again and note.kind in self._config.events:
                    await self._deliver(target, note, report)
                self._told[target.key] = recorded.id  # should the store not take the cursor
            await subscription.ack(recorded)

    async def _tell_health(self, target: Target, report: Report) -> None:
        news = HealthNews(self._config.quiet)
        while True:
            records = [record for record in self._health() if record.name != NAME]
            found = news.look(records, trio.current_time())
            if found:
                grave: Severity = "warning" if any(severity == "warning" for severity, _ in found) else "info"
                first = found[0][1].split(":")[0]
                title = first if len(found) == 1 else f"{first}, and {len(found) - 1} more"
                note = Notification(
                    kind="health",
                    severity=grave,
                    title=f"{self._name}: {title}",
                    body=without_secrets("\n".join(sentence for _, sentence in found)),
                    at=self._clock.now(),
                )
                await self._deliver(target, note, report)
            await trio.sleep(LOOK_EVERY)

    async def _deliver(self, target: Target, note: Notification, report: Report) -> None:
        """Try until it is taken, or too old."""
        pause = FIRST_PAUSE
        while self._clock.now() - note.at < OLDEST:
            report.beat()
            try:
                await target.send(note)
            except WorldError as error:
                self._is(target.label, error.sentence, report)
            else:
                self._is(target.label, None, report)
                return
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        log.warning("a notification grew too old", target=target.label, title=note.title)

    def _is(self, label: str, problem: str | None, report: Report) -> None:
        """How it stands with a target, or with the events."""
        if problem is not None:
            self._problems[label] = problem
            report.degraded("; ".join(self._problems.values()), REMEDY)
        elif self._problems.pop(label, None) is not None and not self._problems:
            report.recovered()

    def _about(self, recorded: Recorded) -> Notification | None:
        """What is told of an event, with what the position is by now."""
        if recorded.name not in EVENTS or not recorded.stream.startswith(STREAM):
            return None
        kind, severity, words = EVENTS[recorded.name]
        order_id = order_of(recorded.stream)
        position: Position | None = None
        if self._positions.health.up:
            with self._positions.lent() as positions:
                position = positions.get(order_id)
        what = _what(position) if position is not None else "position"
        return Notification(
            kind=kind,
            severity=severity,
            title=f"{self._name}: {what} {words}",
            body="\n".join([f"order {order_id.hex()}", *(_facts(position, kind) if position is not None else [])]),
            at=recorded.recorded_at,
            order_id=order_id.hex(),
        )


def _what(position: Position) -> str:
    assert position.offer is not None
    return f"{position.side.value} {position.quantity} {position.offer.symbol}"


def _facts(position: Position, kind: str) -> list[str]:
    """Further lines. Sentences of a peer are text and nothing else: no target takes the body for markup."""
    assert position.offer is not None
    refusals: Mapping[str, Any] = {
        "refused": position.refusal,
        "rollover": position.rollover_refusal,
        "closing": position.close_refusal,
    }
    lines = [f"opened at {position.offer.price}, leverage {position.leverage}", f"state: {position.state.value}"]
    if (refusal := refusals.get(kind)) is not None:
        lines.append(f"refused: {refusal[1]}")
    if position.ending is not None:
        lines.append(f"paid to you: {position.ending.payout(position.role)} sat")
    return lines
