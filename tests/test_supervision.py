"""Each trap of supervising tasks that share one loop, on a clock that jumps."""

import random
import threading
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from attrs import define, field
from structlog.testing import capture_logs

from node.clock import Clock
from node.errors import Disconnected, NeedsUser
from node.health import UP, State
from node.supervision import Run, Service, Supervisor
from protocols.errors import RemoteError, WorldError

Api = TypeVar("Api")


class Outage(WorldError):
    def __init__(self) -> None:
        super().__init__("outage", "the world is out")


@define
class Part:
    """The API of the services here, and the handle by which a test makes a life fail."""

    life: int
    died_of: BaseException | None = None
    _end: trio.Event = field(factory=trio.Event)

    def die(self, error: BaseException | None = None) -> None:
        self.died_of = error
        self._end.set()

    async def run(self) -> None:
        await self._end.wait()
        if self.died_of is not None:
            raise self.died_of

    async def answer(self, question: int) -> int:
        await trio.lowlevel.checkpoint()
        return question + self.life

    async def hang(self) -> None:
        await trio.sleep_forever()

    async def raises(self, error: Exception) -> None:
        await trio.lowlevel.checkpoint()
        raise error


class Lives:
    """A run function that keeps each life's `Part`."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.began: list[float] = []

    async def __call__(self, *, task_status: trio.TaskStatus[Part]) -> None:
        self.began.append(trio.current_time())
        part = Part(len(self.parts))
        self.parts.append(part)
        task_status.started(part)
        await part.run()

    @property
    def now(self) -> Part:
        return self.parts[-1]


def service(run: Run[Api], *needs: Service[Any], name: str = "part", raise_bugs: bool = True) -> Service[Api]:
    return Service(
        name, run, needs, clock=Clock(wall=trio.current_time), jitter=random.Random(1), raise_bugs=raise_bugs
    )


@asynccontextmanager
async def supervised(*services: Service[Any]) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for one in services:
            nursery.start_soon(one.supervise)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as entries:
        yield entries


async def settle() -> None:
    """Let every task run until it waits for something."""
    await trio.testing.wait_all_tasks_blocked()


# Calls


async def test_a_call_runs_a_method_of_the_started_value() -> None:
    part = service(Lives())
    async with supervised(part):
        await part.until(State.HEALTHY)
        assert await part.call(Part.answer, 42) == 42
        with part.lent() as api:
            assert api.life == 0


async def test_a_method_named_by_its_interface_is_the_one_of_the_object_and_a_function_is_itself() -> None:
    class Special(Part):
        async def answer(self, question: int) -> int:
            return 2 * await super().answer(question)

    async def answer(part: Part, question: int) -> int:
        return -await part.answer(question)

    async def special(*, task_status: trio.TaskStatus[Part]) -> None:
        task_status.started(Special(1))
        await trio.sleep_forever()

    part = service(special)
    async with supervised(part):
        await part.until(State.HEALTHY)
        assert await part.call(Part.answer, 4) == 10
        assert await part.call(answer, 4) == -10


async def test_a_call_to_a_service_that_is_not_up_says_so_at_once() -> None:
    part = service(Lives(), name="wallet")
    with pytest.raises(Disconnected) as caught:
        await part.call(Part.answer, 1)
    assert str(caught.value) == "wallet is not available: starting: the node is starting [disconnected]"


async def test_a_call_in_flight_is_disconnected_with_what_the_life_died_of(autojump_clock: object) -> None:
    lives = Lives()
    part = service(lives)
    async with supervised(part), trio.open_nursery() as nursery:
        await part.until(State.HEALTHY)

        async def caller() -> None:
            with pytest.raises(Disconnected, match="part is not available: the world is out"):
                await part.call(Part.hang)

        nursery.start_soon(caller)
        await settle()
        lives.now.die(Outage())


async def test_a_block_that_iterates_is_cancelled_with_the_life() -> None:
    part = service(Lives())
    async with supervised(part):
        await part.until(State.HEALTHY)
        with pytest.raises(Disconnected, match="stopped by the user"), part.lent():
            part.stop()
            await trio.sleep_forever()


async def test_the_callers_own_cancellation_passes() -> None:
    part = service(Lives())
    async with supervised(part):
        await part.until(State.HEALTHY)
        with trio.CancelScope() as scope:
            scope.cancel()
            await part.call(Part.hang)
        assert scope.cancelled_caught
        assert await part.call(Part.answer, 1) == 1


async def test_a_result_that_came_through_is_not_thrown_away() -> None:
    part = service(Lives())
    async with supervised(part):
        await part.until(State.HEALTHY)

        async def stubborn(_api: Part) -> str:
            part.stop()
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            return "written"

        assert await part.call(stubborn) == "written"


@pytest.mark.parametrize("error", [trio.BrokenResourceError("cut"), trio.ClosedResourceError("shut")])
async def test_a_caller_may_meet_the_broken_connection_before_the_supervisor_does(error: Exception) -> None:
    part = service(Lives())
    async with supervised(part):
        await part.until(State.HEALTHY)
        with pytest.raises(Disconnected, match=type(error).__name__) as caught:
            await part.call(Part.raises, error)
        assert caught.value.__cause__ is error
        assert part.state is State.HEALTHY


@pytest.mark.parametrize("dies", [True, False])
async def test_however_deep_in_nurseries_the_caller_meets_it(dies: bool) -> None:
    lives = Lives()
    part = service(lives)

    async def reads(*, until_cancelled: bool) -> None:
        try:
            if until_cancelled:
                await trio.sleep_forever()
        finally:
            raise trio.ClosedResourceError

    async with supervised(part):
        await part.until(State.HEALTHY)
        told = "part is not available: " + ("the world is out" if dies else "ClosedResourceError")
        with pytest.raises(Disconnected, match=told), part.lent():
            async with trio.open_nursery() as nursery:
                if dies:
                    lives.now.die(Outage())
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(partial(reads, until_cancelled=dies))
        await settle()
        assert part.health.bugs == 0


async def test_a_peers_broken_stream_is_an_answer_of_the_service_and_not_its_end() -> None:
    class ConnectionLost(RemoteError, trio.BrokenResourceError): ...

    part = service(Lives())
    async with supervised(part):
        await part.until(State.HEALTHY)
        with pytest.raises(ConnectionLost):
            await part.call(Part.raises, ConnectionLost("connection_lost", "the peer's host is gone"))


async def test_a_service_whose_api_is_none_is_up_like_any_other() -> None:
    async def bare(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep_forever()

    part = service(bare)
    async with supervised(part):
        await part.until(State.HEALTHY)
        with part.lent() as api:
            assert api is None
        part.degraded("slow")
        assert part.state is State.DEGRADED
        with pytest.raises(Disconnected), part.lent():
            part.stop()
            await trio.sleep_forever()


# Ending a life


async def test_loans_are_recalled_at_stop_and_not_when_a_stuck_thread_lets_go() -> None:
    release = threading.Event()

    async def stuck(*, task_status: trio.TaskStatus[Part]) -> None:
        task_status.started(Part(0))
        await trio.to_thread.run_sync(release.wait)  # cannot be killed, and is not abandoned: it may be writing

    part = service(stuck)
    async with supervised(part):
        await part.until(State.HEALTHY)
        async with trio.open_nursery() as nursery:

            async def caller() -> None:
                with pytest.raises(Disconnected):
                    await part.call(Part.hang)

            nursery.start_soon(caller)
            await settle()
            part.stop()
        # the caller is free again although the life is not over
        assert part.state is State.ENDING
        assert part.health.reason == "stopped by the user"
        with pytest.raises(Disconnected, match="ending"):
            await part.call(Part.answer, 1)
        part.degraded("a last word")
        part.recovered()
        assert part.state is State.ENDING
        release.set()
        await part.until(State.STOPPED)


async def test_started_again_while_ending_it_begins_a_new_life_after_the_old_one() -> None:
    release = threading.Event()
    lives = Lives()

    async def slow_to_end(*, task_status: trio.TaskStatus[Part]) -> None:
        try:
            await lives(task_status=task_status)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(release.wait)

    part = service(slow_to_end)
    async with supervised(part):
        await part.until(State.HEALTHY)
        part.stop()
        part.start()
        await settle()
        assert len(lives.parts) == 1
        release.set()
        await part.until(State.HEALTHY)
        assert (await part.call(Part.answer, 0), part.health.failures) == (1, 0)


async def test_a_cancelled_life_may_return_as_if_nothing_had_happened() -> None:
    lives = Lives()

    async def swallows(*, task_status: trio.TaskStatus[Part]) -> None:
        with trio.move_on_after(1) as own:
            own.cancel()
            await trio.lowlevel.checkpoint()
        lives.parts.append(Part(len(lives.parts)))
        task_status.started(lives.now)
        with trio.CancelScope(shield=True):
            await lives.now._end.wait()

    part = service(swallows)
    async with supervised(part):
        await part.until(State.HEALTHY)
        part.restart()
        lives.now.die()
        await part.until(State.HEALTHY)
        assert len(lives.parts) == 2
        assert (part.health.failures, part.health.bugs) == (0, 0)
        lives.now.die()
        part.stop()
        await part.until(State.STOPPED)


async def test_a_cancelled_life_may_still_say_that_it_has_started(autojump_clock: object) -> None:
    async def late(*, task_status: trio.TaskStatus[Part]) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        task_status.started(Part(0))
        await trio.sleep_forever()

    part = service(late)
    seen = []
    async with supervised(part):
        await settle()
        part._listeners.append(lambda: seen.append(part.state))
        part.stop()
        await part.until(State.STOPPED)
    assert seen == [State.ENDING, State.STOPPED]


async def test_a_life_that_was_stopped_in_the_moment_it_started_is_lent_to_nobody() -> None:
    async def prompt(*, task_status: trio.TaskStatus[Part]) -> None:
        task_status.started(Part(0))
        part.stop()  # here; from a request that is handled in the same step of the loop, say
        await trio.sleep_forever()

    part = service(prompt)
    seen = []
    part._listeners.append(lambda: seen.append(part.state))
    async with supervised(part):
        await part.until(State.STOPPED)
    assert seen == [State.STARTING, State.ENDING, State.STOPPED]


@pytest.mark.parametrize("error", [Outage(), trio.BrokenResourceError("closed under its reader")])
async def test_what_a_cancelled_life_raises_is_no_failure(error: Exception) -> None:
    lives = Lives()

    async def noisy(*, task_status: trio.TaskStatus[Part]) -> None:
        try:
            await lives(task_status=task_status)
        except trio.Cancelled:
            raise error from None

    part = service(noisy)
    async with supervised(part):
        await part.until(State.HEALTHY)
        seen = []
        part._listeners.append(lambda: seen.append(part.state))
        part.restart()
        await part.until(State.HEALTHY)  # on a real clock: there is no pause
        assert [state for state in seen if state is not State.ENDING] == [State.STARTING, State.HEALTHY]
        assert len(lives.parts) == 2
        assert (part.health.failures, part.health.last_error) == (0, "")


async def test_a_bug_beside_the_cancellation_is_counted_and_ends_nothing_else() -> None:
    async def clumsy(*, task_status: trio.TaskStatus[Part]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            task_status.started(Part(0))
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError("in cleaning up")

    part = service(clumsy, raise_bugs=False)
    async with supervised(part):
        await part.until(State.HEALTHY)
        part.restart()
        await part.until(State.HEALTHY)
        assert (part.health.bugs, part.health.failures) == (1, 0)
    # and the end of the node was not disturbed by the second one
    assert part.health.bugs == 2

    with pytest.raises(ExceptionGroup) as caught:
        async with supervised(part := service(clumsy)):
            await part.until(State.HEALTHY)
            part.stop()
            await part.until(State.STOPPED)
    assert caught.group_contains(ZeroDivisionError)


async def test_an_interrupt_from_the_keyboard_arrives_in_a_group_and_passes() -> None:
    lives = Lives()

    async def groups(*, task_status: trio.TaskStatus[Part]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(lives.__call__)
            task_status.started(lives.now)

    part = service(groups, raise_bugs=False)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with supervised(part):
            await part.until(State.HEALTHY)
            lives.now.die(KeyboardInterrupt())
            await trio.sleep_forever()
    assert caught.group_contains(KeyboardInterrupt)
    assert len(lives.parts) == 1


async def test_calls_in_flight_are_disconnected_when_the_node_ends() -> None:
    part = service(Lives())
    async with trio.open_nursery() as callers:

        async def caller() -> None:
            with pytest.raises(Disconnected, match="the node is ending"):
                await part.call(Part.hang)

        async with supervised(part):
            await part.until(State.HEALTHY)
            callers.start_soon(caller)
            await settle()
    assert part.state is State.ENDING


# Failures, bugs, pauses


async def test_it_backs_off_with_jitter_up_to_a_minute_for_ever(autojump_clock: object) -> None:
    lives = Lives()
    part = service(lives)
    pauses = []
    async with supervised(part):
        for _ in range(12):
            await part.until(State.HEALTHY)
            lives.now.die(Outage())
            await part.until(State.RESTARTING)
            assert part.health.reason == "the world is out"
            next_try = part.health.next_try
            assert next_try is not None
            pauses.append(next_try - trio.current_time())
    assert all(0.5 <= pause <= 60 for pause in pauses)
    assert pauses[0] <= 1 < pauses[2] <= 4
    assert all(pause >= 30 for pause in pauses[7:])
    assert len(set(pauses)) == len(pauses)
    waited = [later - sooner for sooner, later in zip(lives.began, lives.began[1:], strict=False)]
    assert waited == pytest.approx(pauses[: len(waited)])
    assert (part.health.failures, part.health.bugs) == (12, 0)


async def test_a_minute_of_being_up_forgets_the_failures_before(autojump_clock: object) -> None:
    lives = Lives()
    part = service(lives)
    async with supervised(part):
        pauses = []
        for up in (0, 0, 0, 0, 0, 59, 61):
            await part.until(State.HEALTHY)
            await trio.sleep(up)
            lives.now.die(Outage())
            await part.until(State.RESTARTING)
            assert part.health.next_try is not None
            pauses.append(part.health.next_try - trio.current_time())
        assert pauses[5] >= 16
        assert pauses[6] <= 1


async def test_a_life_that_never_comes_up_backs_off_however_long_it_tries(autojump_clock: object) -> None:
    async def up_once(*, task_status: trio.TaskStatus[Part]) -> None:
        if part.health.failures == 0:
            task_status.started(Part(0))
        await trio.sleep(100)
        raise Outage

    part = service(up_once)
    async with supervised(part):
        await trio.sleep(3000)
        assert part.health.failures < 3000 / (100 + 20)


@pytest.mark.parametrize("how", ["raises", "returns", "ends before it started"])
async def test_an_error_nobody_foresaw_restarts_too_and_is_counted(
    how: str, autojump_clock: object, logged: list[MutableMapping[str, Any]]
) -> None:
    lives = Lives()

    async def buggy(*, task_status: trio.TaskStatus[Part]) -> None:
        if how != "ends before it started":
            await lives(task_status=task_status)

    def fail() -> None:
        if lives.parts:
            lives.now.die(ZeroDivisionError("a bug") if how == "raises" else None)

    part = service(buggy, raise_bugs=False)
    async with supervised(part):
        for count in (1, 2):
            await settle()
            fail()
            await part.until(State.RESTARTING)
            assert part.health.bugs == count
            assert len([entry for entry in logged if entry["event"] == "bug in a service"]) == count
            await trio.sleep(2)

    lives = Lives()
    with pytest.raises(ExceptionGroup):
        async with supervised(part := service(buggy)):
            await settle()
            fail()
            await trio.sleep_forever()


async def test_restart_does_not_wait_out_the_pause_and_stop_does_not_either() -> None:
    lives = Lives()
    part = service(lives)
    async with supervised(part):
        await part.until(State.HEALTHY)
        lives.now.die(Outage())
        await part.until(State.RESTARTING)
        part.restart()
        await part.until(State.HEALTHY)
        lives.now.die(Outage())
        await part.until(State.RESTARTING)
        assert part.health.next_try is not None
        assert part.health.next_try - trio.current_time() <= 1  # what the user restarts begins afresh
        part.stop()
        await part.until(State.STOPPED)
        part.start()
        await part.until(State.HEALTHY)
        part.start()  # of what is running: nothing
        assert part.state is State.HEALTHY
        assert len(lives.parts) == 3


async def test_stopped_before_the_node_starts_it_stays_stopped() -> None:
    lives = Lives()
    part = service(lives)
    part.stop()
    async with supervised(part):
        await part.until(State.STOPPED)
        await settle()
        assert not lives.parts
        part.restart()
        await part.until(State.HEALTHY)


async def test_what_only_the_user_can_mend_blocks_until_the_user_says_so(autojump_clock: object) -> None:
    lives = Lives()

    async def locked(*, task_status: trio.TaskStatus[Part]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(lives.__call__)
            task_status.started(lives.now)

    part = service(locked)
    async with supervised(part):
        await part.until(State.HEALTHY)
        mend = NeedsUser("another node holds the data directory", "end the other node")
        lives.now.die(ExceptionGroup("both", [Outage(), mend]))
        await part.until(State.BLOCKED)
        assert part.health.reason == "another node holds the data directory"
        assert part.health.remedy == "end the other node"
        assert part.health.bugs == 0
        await trio.sleep(3600)
        assert part.state is State.BLOCKED
        part.restart()
        await part.until(State.HEALTHY)
        assert part.health.remedy == ""


# Needs


async def test_a_need_gates_the_start_and_its_end_kills_nobody(autojump_clock: object) -> None:
    chain_lives, wallet_lives = Lives(), Lives()
    chain = service(chain_lives, name="chain")
    store = service(Lives(), name="store")
    wallet = service(wallet_lives, chain, store, name="wallet")
    chain.stop()
    store.stop()
    async with supervised(wallet, chain, store):
        await wallet.until(State.WAITING)
        assert wallet.health.reason == "waits for chain"
        chain.start()
        await chain.until(State.HEALTHY)
        await settle()
        assert wallet.health.reason == "waits for store"
        chain.degraded("server is slow")  # up is enough
        store.start()
        await wallet.until(State.HEALTHY)
        chain_lives.now.die(Outage())
        await chain.until(State.RESTARTING)
        await trio.sleep(0.1)
        assert wallet.state is State.HEALTHY
        assert len(wallet_lives.parts) == 1


async def test_all_needs_must_be_up_at_the_same_time() -> None:
    chain, store = service(Lives(), name="chain"), service(Lives(), name="store")
    wallet_lives = Lives()
    wallet = service(wallet_lives, chain, store, name="wallet")
    store.stop()
    async with supervised(wallet, chain, store):
        await chain.until(State.HEALTHY)
        chain.stop()
        store.start()
        await store.until(State.HEALTHY)
        await settle()
        assert (wallet.health.reason, wallet_lives.parts) == ("waits for chain", [])


async def test_the_end_of_a_need_does_not_grow_the_pause_but_that_of_others_does(
    autojump_clock: object,
) -> None:
    chain, exchange = service(Lives(), name="chain"), service(Lives(), name="exchange")
    lives = Lives()
    wallet = service(lives, chain, name="wallet")
    exchange.stop()
    async with supervised(wallet, chain, exchange):
        for _ in range(8):
            await wallet.until(State.HEALTHY)
            lives.now.die(Disconnected("chain", "restarting"))
            await wallet.until(State.RESTARTING)
            next_try = wallet.health.next_try
            assert next_try is not None
            assert next_try - trio.current_time() <= 1
        for _ in range(8):
            await wallet.until(State.HEALTHY)
            lives.now.die(Disconnected("exchange", "stopped by the user"))
            await wallet.until(State.RESTARTING)
        next_try = wallet.health.next_try
        assert next_try is not None
        assert next_try - trio.current_time() >= 30
        assert wallet.health.bugs == 0


# What it says of itself


async def test_a_life_reports_that_it_is_degraded_and_recovered(autojump_clock: object) -> None:
    lives = Lives()
    ready = trio.Event()

    async def slow(*, task_status: trio.TaskStatus[Part]) -> None:
        if not lives.parts:
            part.degraded("first server refused")
        await ready.wait()
        await lives(task_status=task_status)

    part = service(slow)
    async with supervised(part):
        await settle()
        assert (part.state, part.health.reason) == (State.STARTING, "first server refused")
        ready.set()
        await part.until(*UP)
        assert (part.state, part.health.reason) == (State.DEGRADED, "first server refused")
        assert await part.call(Part.answer, 7) == 7
        await trio.sleep(5)
        before = part.health.since
        part.degraded("first server refused")
        assert part.health.since == before
        part.recovered()
        part.fresh()
        assert (part.state, part.health.reason) == (State.HEALTHY, "")
        assert part.health.since == part.health.data_at == trio.current_time()
        part.degraded("second server refused")
        lives.now.die(Outage())
        await part.until(State.RESTARTING)
        part.restart()
        await part.until(State.HEALTHY)  # what the last life reported died with it


async def test_the_node_starts_its_services_in_order_and_waits_for_none(autojump_clock: object) -> None:
    clock = Clock(wall=trio.current_time)
    supervisor = Supervisor(clock=clock, jitter=random.Random(1), raise_bugs=True)
    page_lives, chain_lives, store_lives = Lives(), Lives(), Lives()

    async def slow(*, task_status: trio.TaskStatus[Part]) -> None:
        await trio.sleep(0.2)
        await page_lives(task_status=task_status)

    async def unreachable(*, task_status: trio.TaskStatus[Part]) -> None:
        chain_lives.began.append(trio.current_time())
        await trio.sleep_forever()

    page = supervisor.service("page", slow)
    chain = supervisor.service("chain", unreachable)
    store = supervisor.service("store", store_lives)
    waits = supervisor.service("wallet", Lives(), [chain])
    assert supervisor.services == (page, chain, store, waits)
    assert supervisor["store"] is store
    with pytest.raises(ValueError, match="two services named page"):
        supervisor.service("page", slow)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        assert [s.state for s in supervisor.services] == ["healthy", "starting", "healthy", "waiting"]
        assert page_lives.began == [start + 0.2]
        assert chain_lives.began == [start + 0.2]
        assert store_lives.began == pytest.approx([start + 0.7])
        nursery.cancel_scope.cancel()


async def test_changes_tells_what_is_now_and_misses_no_last_word(autojump_clock: object) -> None:
    supervisor = Supervisor(clock=Clock(wall=trio.current_time), raise_bugs=True)
    lives = Lives()
    part = supervisor.service("part", lives)
    seen: list[tuple[State, str]] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        changes = supervisor.changes()
        async for (record,) in changes:
            seen.append((record.state, record.reason))
            match len(seen):
                case 1:  # both before the watcher asks again: it gets the later one
                    part.degraded("slow")
                    part.degraded("slower")
                case 2:
                    lives.now.die(Outage())
                case 4:
                    break
        await changes.aclose()
        nursery.cancel_scope.cancel()
    assert seen[0] == (State.HEALTHY, "")
    assert seen[1] == (State.DEGRADED, "slower")
    assert seen[2] == (State.RESTARTING, "the world is out")


def test_a_record_says_what_the_user_can_do_and_how_old_its_data_is() -> None:
    part = service_at(1000.0)
    part.fresh()
    record = part.health.as_json(now=1030.0)
    assert (record["state"], record["data_age"], record["actions"]) == ("starting", 30.0, ("restart", "stop"))
    assert service_at(0.0).health.as_json(now=1.0)["data_age"] is None


def service_at(now: float) -> Service[Part]:
    return Service("part", Lives(), clock=Clock(wall=lambda: now))
