"""Services: the parts of a node that fail, come back, and say so.

A service is any function that ``nursery.start`` can start; what it passes to ``task_status.started`` is its API. Others
never hold that API: they hold the `Service` and write ``await wallet.call(Wallet.fund, amount)``, so that a part that
is down, or goes down during the call, is one typed error, `Disconnected`, and never a hang or a stale object.

A life that ends is begun again after a pause of 0.5 to 60 seconds, for ever. One that makes no progress for longer
than its `patience` is ended as stuck: its work says by `beat` that it goes on. A thread cannot be killed: until it lets
go its life is `ending`, lent to nobody, and only then the next one begins. What a service *needs* gates its start only:
when a need goes down later, calls to it fail, and nobody is killed for it. Ending the node ends all services at once;
what must survive is on disk before it matters, and a power cut does no worse.
"""

import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast

import structlog
import trio
from attrs import evolve, frozen

from node.causes import EXPECTED, describe, describe_all, kind_of, leaves, remedy_for, with_cause
from node.clock import Clock
from node.errors import Conflict, Disconnected, NeedsUser, NotFound, Stuck
from node.fallen import Fallen
from node.health import REMEDIES, UP, OfferedRepair, Report, ServiceHealth, State
from protocols.errors import CodedError

BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)
"""What the user of an API meets when the life behind it is over."""

LONGEST_PAUSE = 60.0
HEALTHY_ENOUGH = 60.0
"""Seconds of being up after which the next failure counts as the first, and the service as well again."""
PATIENCE = 120.0
"""Seconds that a service has between two beats, where nothing else is said."""
START_PATIENCE = 3
"""How many times as long as one that is up a life may go without progress while it starts."""
HELD_UP = 1.0
"""Seconds by which a timer may be late. More, and nothing ran in this process meanwhile: nobody is stuck for that."""
HEAD_START = 0.5
"""Seconds that a service may have to start before the next one in order begins to: the page comes up first."""


@frozen
class Repair:
    """What the user may ask of a service beside start, stop and restart: always, or while the service names it."""

    name: str
    title: str
    consequence: str
    """What the user has to agree to; empty if there is nothing."""
    run: Callable[[], Awaitable[None]]
    always: bool = False


Api = TypeVar("Api")
Api_co = TypeVar("Api_co", covariant=True)
R = TypeVar("R")
P = ParamSpec("P")

_log = structlog.get_logger(__name__)


class Run(Protocol[Api_co]):
    """One life of a service: calls ``task_status.started(api)`` once it is up, and then goes on until cancelled."""

    def __call__(self, *, task_status: trio.TaskStatus[Api_co]) -> Awaitable[object]: ...


class ReportingRun(Protocol[Api_co]):
    """The same, told whom to report to."""

    def __call__(self, *, report: Report, task_status: trio.TaskStatus[Api_co]) -> Awaitable[object]: ...


class Service(Generic[Api]):
    """One supervised service. `stop`, `start`, `restart` are the user's; `degraded`, `recovered`, `fresh` the life's.

    `raise_bugs` (in tests) lets an unexpected exception end `supervise` instead of only counting it.
    """

    def __init__(
        self,
        name: str,
        run: Run[Api],
        needs: "Sequence[Service[Any]]" = (),
        *,
        patience: float | None = None,
        repairs: "Sequence[Repair]" = (),
        clock: Clock | None = None,
        jitter: random.Random | None = None,
        raise_bugs: bool = False,
    ) -> None:
        """`patience`: seconds without a `beat` after which a life that is up counts as stuck; None: for ever."""
        self.name = name
        self.needs = tuple(needs)
        self.patience = math.inf if patience is None else patience
        self.repairs = tuple(repairs)
        self.raise_bugs = raise_bugs
        self._run = run
        self._clock = clock or Clock()
        self._jitter = jitter or random.Random()
        self._wanted = True
        self._turn: trio.CancelScope | None = None
        self._loans: set[trio.CancelScope] = set()
        self._api: Api | None = None  # of a life that is up; may be None then, too
        self._up_since: float | None = None
        self._failures = 0
        self._beaten = 0.0  # by trio's clock
        self._impaired = self._remedy = ""
        self._named: frozenset[str] = frozenset()  # repairs that the life, or its end, asks for
        self._repairing = ""
        self._end_of_life = ""
        self._told: frozenset[str] = frozenset()  # the kinds of causes of which the log knows
        self._unwell: tuple[int, float] | None = None  # failures since it was last well, and when the first was
        self._changed = trio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._fell: Callable[[str, Disconnected], None] | None = None  # whom to tell that it ended with a need
        self._health = ServiceHealth(
            name=name,
            state=State.STARTING,
            since=self._clock.now(),
            reason="the node is starting",
            remedy=REMEDIES[State.STARTING],
            repairs=self._offered(),
            needs=tuple(need.name for need in self.needs),
        )

    def __repr__(self) -> str:
        return f"<Service {self.name}: {self._standing()}>"

    # What others do with it

    @property
    def health(self) -> ServiceHealth:
        return self._health

    @property
    def state(self) -> State:
        return self._health.state

    @contextmanager
    def lent(self) -> Iterator[Api]:
        """The API, for as long as the block runs; the block is cancelled and `Disconnected` raised if the life ends.

        For what `call` cannot do: methods that do not wait, and iterating over what the API returns. Needs no
        ``async with``; must not be entered across a ``yield`` of an async generator.
        """
        if not self._health.up:
            raise Disconnected(self.name, self._standing())
        loan = trio.CancelScope()
        self._loans.add(loan)
        try:
            with loan:
                yield cast(Api, self._api)
        except Exception as error:
            # a caller may meet the broken connection before the life does; a coded error is an answer
            if all(isinstance(leaf, BROKEN) and not isinstance(leaf, CodedError) for leaf in leaves(error)):
                reason = self._end_of_life if loan.cancel_called else describe_all(list(leaves(error)))
                raise Disconnected(self.name, reason) from error
            raise
        finally:
            self._loans.discard(loan)
        if loan.cancelled_caught:
            raise Disconnected(self.name, self._end_of_life)

    async def call(self, method: Callable[Concatenate[Api, P], Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """``await wallet.call(Wallet.fund, amount)``: the method runs in the caller's task.

        Raises `Disconnected` if the service is not up or goes down before the method is through. A method that gets
        through all the same (its thread was stuck in it) gives its result: a known outcome is never thrown away.
        A method named by a base class is the API's own, as in ``api.fund(amount)``; any function will do, too.
        """
        with self.lent() as api:
            return await _own(api, method)(api, *args, **kwargs)
        raise AssertionError("a recalled loan raises")

    async def until(self, *states: State) -> None:
        """Return at once if the service is in one of the states, else when it next is (and still is: a state that was
        left again before the waiting task could run does not count)."""
        while self.state not in states:
            await self._changed.wait()

    # What the user does with it

    def stop(self) -> None:
        """End it and keep it ended until `start`. Takes effect on callers now, even if the life is slow to end."""
        self._wanted = False
        self._end("stopped by the user")

    def start(self) -> None:
        """Undo `stop`; a service that is not stopped is left alone."""
        if not self._wanted:
            self._wanted = True
            self._ring()

    def restart(self) -> None:
        """End the present life, wait or pause, and begin a new life at once."""
        self._wanted = True
        self._failures = 0
        self._end("restarted by the user")
        self._ring()

    def repair(self, name: str) -> Repair:
        """One that is offered now. Raises `NotFound` or `Conflict`."""
        found = next((repair for repair in self.repairs if repair.name == name), None)
        if found is None:
            there = ", ".join(repair.name for repair in self.repairs) or "none"
            raise NotFound("no_such_repair", f"{self.name} has no repair {name!r}; there are: {there}")
        if not self._offers(found):
            raise Conflict("repair_not_offered", f"{self.name} is {self._standing()}; {name} is not offered now")
        return found

    async def mend(self, name: str) -> None:
        """Carry out a repair that is offered now, one at a time. Raises as `repair`, and what the repair raises."""
        repair = self.repair(name)
        if self._repairing:
            raise Conflict("repair_under_way", f"{self._repairing} of {self.name} is under way already")
        self._repairing = name
        _log.warning("repair begun", service=self.name, repair=name)
        try:
            await repair.run()
        finally:
            self._repairing = ""

    # What its own life reports

    # (a life that is ending may still report: nobody is lent it, so nobody is told)

    def degraded(self, reason: str, remedy: str = "", repairs: Sequence[str] = ()) -> None:
        self._impaired, self._remedy, self._named = reason, remedy, frozenset(repairs)
        if self._health.up:
            self._became(State.DEGRADED, reason, remedy=remedy)
        elif self.state is State.STARTING:
            self._became(State.STARTING, reason, remedy=remedy)

    def recovered(self) -> None:
        self._impaired, self._named = "", frozenset()
        if self._health.up:
            self._became(State.HEALTHY)

    def fresh(self) -> None:
        now = self._clock.now()
        self._health = evolve(self._health, data_at=now, last_success=now)

    def beat(self) -> None:
        self._beaten = trio.current_time()

    @property
    def beat_every(self) -> float:
        return self.patience / 3

    # The supervision itself

    async def supervise(self) -> None:
        """Keep the service alive; runs until cancelled."""
        while True:
            if not self._wanted:
                self._became(State.STOPPED, "stopped by the user")
                while not self._wanted:
                    await self._changed.wait()
            with trio.CancelScope() as self._turn:
                died_of = await self._live()
                if self._turn.cancel_called:
                    continue
                await self._pause(died_of)

    async def _live(self) -> list[Exception]:
        """One life, and what it died of."""
        died_of: list[Exception] = []
        self._up_since = None
        try:
            while need := next((need for need in self.needs if need.state not in UP), None):
                self._became(State.WAITING, f"waits for {need.name}")
                await need.until(*UP)
            self._impaired, self._named = "", frozenset()
            self._became(State.STARTING)
            async with trio.open_nursery() as watchers:
                if self.patience < math.inf:
                    self.beat()
                    watchers.start_soon(self._watch)
                async with trio.open_nursery() as nursery:
                    api: Api = await nursery.start(self._run)
                    await trio.lowlevel.checkpoint_if_cancelled()  # a cancelled life may still say it has started
                    self._lend(api)
                    if self._unwell is not None:
                        watchers.start_soon(self._tell_when_well)
                await trio.lowlevel.checkpoint_if_cancelled()  # and may still return as if nothing had happened
                raise RuntimeError("ended without an error")
        except* Exception as group:
            # not `except`: an error may come beside a Cancelled or a KeyboardInterrupt, and those must pass
            died_of = list(leaves(group))
            if self._record(died_of) and self.raise_bugs:
                raise
        finally:
            if self._health.up:
                self._recall(describe_all(died_of) or "the node is ending")
        return died_of

    async def _watch(self) -> None:
        """Raise `Stuck` when a life makes no progress for too long."""
        while True:
            allowed = self.patience * (1 if self._health.up else START_PATIENCE)
            left = self._beaten + allowed - trio.current_time()
            if left <= 0:
                break
            due = trio.current_time() + min(left, self.patience)
            await trio.sleep_until(due)
            if trio.current_time() - due > HELD_UP:
                self.beat()
        stuck = Stuck(allowed, starting=not self._health.up)
        self._recall(f"{stuck.sentence}; a new life begins as soon as this one is over")
        raise stuck

    async def _tell_when_well(self) -> None:
        """One line once it is up for good again: a service that comes and goes is not well."""
        await trio.sleep(HEALTHY_ENOUGH)
        await self.until(State.HEALTHY)
        assert self._unwell is not None
        failures, since = self._unwell
        self._unwell, self._told = None, frozenset()
        seconds = round(trio.current_time() - since)
        _log.info("service is well again", service=self.name, failures=failures, seconds=seconds)

    async def _pause(self, died_of: Sequence[Exception]) -> None:
        """Wait before the next life: for the user if only the user can help, else for the backoff."""
        for error in died_of:
            if isinstance(error, NeedsUser):
                self._named = frozenset(error.repairs)
                self._became(State.BLOCKED, error.sentence, remedy=error.remedy)
                await trio.sleep_forever()
        if self._up_since is not None and trio.current_time() - self._up_since >= HEALTHY_ENOUGH:
            self._failures = 0
        if not all(self._is_of_a_need(error) for error in died_of):
            self._failures += 1  # that a need is gone says nothing about this service: the next life waits for it
        ceiling = min(LONGEST_PAUSE, 2.0 ** min(max(self._failures - 1, 0), 10))
        pause = ceiling * self._jitter.uniform(0.5, 1.0)
        self._became(
            State.RESTARTING,
            describe_all(died_of),
            remedy=next(filter(None, map(remedy_for, died_of)), ""),
            next_try=self._clock.now() + pause,
        )
        await trio.sleep(pause)

    def _is_of_a_need(self, error: Exception) -> bool:
        return isinstance(error, Disconnected) and error.service in self._health.needs

    def _record(self, died_of: Sequence[Exception]) -> bool:
        """Count and log what ended a life; says whether there was a bug in it."""
        bugs = [error for error in died_of if not isinstance(error, (*EXPECTED, NeedsUser))]
        told_to_end = self._turn is not None and self._turn.cancel_called  # then broken pipes are no failure
        if bugs or not told_to_end:
            failures = 0 if told_to_end else 1
            now, causes = self._clock.now(), self._health.causes
            kinds = {kind_of(error): error for error in died_of}
            for kind, error in kinds.items():
                causes = with_cause(causes, kind, describe(error), now)
            self._health = evolve(
                self._health,
                failures=self._health.failures + failures,
                bugs=self._health.bugs + len(bugs),
                last_error=describe_all(died_of),
                causes=causes,
            )
            self._tell(kinds, bugs)
        return bool(bugs)

    def _tell(self, kinds: Mapping[str, Exception], bugs: Sequence[Exception]) -> None:
        """Log what is new: not that it failed again in the same way, which the record counts."""
        lost = [error for error in kinds.values() if isinstance(error, Disconnected) and self._is_of_a_need(error)]
        if self._fell is not None and lost and len(lost) == len(kinds):
            self._fell(self.name, lost[0])  # it is well again as soon as that one is, and has nothing else to tell
            _log.debug("service failed", service=self.name, error=self._health.last_error)
            return
        times, since = self._unwell or (0, trio.current_time())
        self._unwell = times + 1, since
        new = not kinds.keys() <= self._told
        self._told |= kinds.keys()
        for bug in bugs:
            told = {"service": self.name, "error": describe(bug)}
            if new:
                _log.error("bug in a service", **told, exc_info=bug)
            else:
                _log.debug("bug in a service", **told)
        (_log.warning if new else _log.debug)("service failed", service=self.name, error=self._health.last_error)

    def _lend(self, api: Api) -> None:
        self._api = api
        self._up_since = trio.current_time()
        self.beat()
        if self._impaired:
            self._became(State.DEGRADED, self._impaired, remedy=self._remedy)
        else:
            self._became(State.HEALTHY)

    def _recall(self, reason: str) -> None:
        """Take the API back from everyone, now."""
        self._api = None
        self._end_of_life = reason
        for loan in self._loans:
            loan.cancel(reason)
        self._became(State.ENDING, reason)

    def _end(self, reason: str) -> None:
        if self._turn is not None and not self._turn.cancel_called:
            # recalled here and not when the life has ended: a stuck thread would go on looking healthy, and be lent
            self._recall(reason)
            self._turn.cancel(reason)

    def _became(self, state: State, reason: str = "", *, remedy: str = "", next_try: float | None = None) -> None:
        before, now = self._health, self._clock.now()
        well = State.HEALTHY in (before.state, state)
        same = (state, reason, next_try) == (before.state, before.reason, before.next_try)
        self._health = evolve(
            before,
            state=state,
            reason=reason,
            remedy="" if state is State.HEALTHY else remedy or REMEDIES[state],
            next_try=next_try,
            since=before.since if same else now,
            last_success=now if well else before.last_success,
            repairs=self._offered(state),
        )
        if not same or self._health.repairs != before.repairs:
            self._ring()

    def _offers(self, repair: Repair, state: State | None = None) -> bool:
        state = state or self.state
        named = repair.name in self._named and state in (State.STARTING, State.DEGRADED, State.BLOCKED)
        return repair.always or named

    def _offered(self, state: State = State.STARTING) -> tuple[OfferedRepair, ...]:
        return tuple(
            OfferedRepair(repair.name, repair.title, repair.consequence)
            for repair in self.repairs
            if self._offers(repair, state)
        )

    def _ring(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        for listener in self._listeners:
            listener()

    def _standing(self) -> str:
        return f"{self.state}: {self._health.reason}" if self._health.reason else self.state.value


class Supervisor:
    """The services of a node, in the order in which they start, and what they say of themselves."""

    def __init__(
        self, *, clock: Clock | None = None, jitter: random.Random | None = None, raise_bugs: bool = False
    ) -> None:
        self._clock = clock or Clock()
        self._jitter = jitter or random.Random()
        self._raise_bugs = raise_bugs
        self._services: dict[str, Service[Any]] = {}
        self._changed = trio.Event()
        self._fallen = Fallen()
        self._nursery: trio.Nursery | None = None

    def service(
        self,
        name: str,
        run: Run[Api],
        needs: Sequence[Service[Any]] = (),
        *,
        patience: float | None = None,
        repairs: Sequence[Repair] = (),
    ) -> Service[Api]:
        """Add a service; one that is added while `run` runs is started behind the others."""
        if name in self._services:
            raise ValueError(f"two services named {name}")
        service = Service(
            name,
            run,
            needs,
            patience=patience,
            repairs=repairs,
            clock=self._clock,
            jitter=self._jitter,
            raise_bugs=self._raise_bugs,
        )
        service._listeners.append(self._ring)
        service._fell = self._fallen.note
        self._services[name] = service
        if self._nursery is not None:
            self._nursery.start_soon(service.supervise, name=f"service {name}")
            self._ring()
        return service

    def reporting(
        self,
        name: str,
        run: ReportingRun[Api],
        needs: Sequence[Service[Any]] = (),
        *,
        patience: float | None = PATIENCE,
        repairs: Sequence[Repair] = (),
    ) -> Service[Api]:
        """`service`, for a function that is handed its own service to report to."""

        async def live(*, task_status: trio.TaskStatus[Api]) -> None:
            await run(report=service, task_status=task_status)

        service = self.service(name, live, needs, patience=patience, repairs=repairs)
        return service

    def remove(self, name: str) -> None:
        """End a service that nothing needs, and forget it."""
        self._services.pop(name).stop()
        self._ring()

    @property
    def services(self) -> tuple[Service[Any], ...]:
        return tuple(self._services.values())

    def __getitem__(self, name: str) -> Service[Any]:
        return self._services[name]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run all services until cancelled; started when each has been begun, whatever became of it."""
        try:
            async with trio.open_nursery() as nursery:
                present, self._nursery = self.services, nursery
                nursery.start_soon(self._fallen.run)
                for service in present:
                    nursery.start_soon(service.supervise, name=f"service {service.name}")
                    with trio.move_on_after(HEAD_START):
                        await service.until(*(set(State) - {State.STARTING}))
                task_status.started()
                await trio.sleep_forever()  # there may be none yet
        finally:
            self._nursery = None

    def health(self) -> tuple[ServiceHealth, ...]:
        return tuple(service.health for service in self.services)

    async def changes(self) -> AsyncGenerator[tuple[ServiceHealth, ...], None]:
        """All records now, and again whenever a state or reason changed since the last that was asked for."""
        while True:
            changed = self._changed
            yield self.health()
            await changed.wait()

    def _ring(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def _own(api: object, method: Callable[P, R]) -> Callable[P, R]:
    """What a subclass put in the place of `method`, if it did."""
    name = getattr(method, "__name__", "")
    if any(vars(base).get(name) is method for base in type(api).__mro__):
        own: Callable[P, R] = getattr(type(api), name)
        return own
    return method
