"""Services that make no progress, fail again and again, or can be repaired; on a clock that jumps."""

import math
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from node.causes import MOST_CAUSES, NOTHING
from node.clock import Clock
from node.config import HostPort, MakerConfig, TakerConfig, load
from node.errors import Conflict, Disconnected, NeedsUser, NotFound
from node.health import Beating, Report, State, stay, wait_beating
from node.maker import Maker
from node.supervision import HEALTHY_ENOUGH, START_PATIENCE, Repair, Service, Supervisor
from node.taker import Taker
from node.web.sockets import bind_api
from protocols.errors import WorldError

PATIENCE = 60.0

Logged = list[MutableMapping[str, Any]]
Run = Callable[..., Awaitable[None]]


@pytest.fixture(autouse=True)
def logged() -> Iterator[Logged]:
    with capture_logs() as entries:
        yield entries


def supervisor(*, raise_bugs: bool = True) -> Supervisor:
    return Supervisor(clock=Clock(wall=trio.current_time), jitter=random.Random(1), raise_bugs=raise_bugs)


@asynccontextmanager
async def running(node: Supervisor) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield
        nursery.cancel_scope.cancel()


def serve(node: Supervisor, run: Run, **more: Any) -> Service[None]:
    return node.reporting("part", run, patience=PATIENCE, **more)


# Stuck


async def test_a_life_that_is_up_and_makes_no_progress_is_begun_anew(autojump_clock: object) -> None:
    began: list[float] = []

    async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        began.append(trio.current_time())
        task_status.started()
        await trio.sleep_forever()

    node = supervisor()
    part = serve(node, run)
    async with running(node):
        await part.until(State.RESTARTING)
        assert trio.current_time() == began[0] + PATIENCE
        assert part.health.reason == "it made no progress for 60 s"
        assert part.health.bugs == 0
        assert part.health.remedy.startswith(NOTHING)
        await part.until(State.HEALTHY)
        assert len(began) == 2


async def test_beats_keep_it_alive_and_the_last_one_counts(autojump_clock: object) -> None:
    async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        for _ in range(100):
            report.beat()
            await trio.sleep(report.beat_every)
        report.beat()
        await trio.sleep_forever()

    node = supervisor()
    part = serve(node, run)
    async with running(node):
        await part.until(State.RESTARTING)
        assert trio.current_time() == pytest.approx(100 * PATIENCE / 3 + PATIENCE)


async def test_a_start_may_take_longer_but_not_for_ever(autojump_clock: object) -> None:
    async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep_forever()

    node = supervisor()
    part = serve(node, run)
    async with running(node):
        await part.until(State.RESTARTING)
        assert trio.current_time() == START_PATIENCE * PATIENCE
        assert part.health.reason == "its start made no progress for 180 s"


async def test_patience_counts_from_being_up_and_not_from_a_long_start(autojump_clock: object) -> None:
    async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(2.5 * PATIENCE)
        task_status.started()
        await trio.sleep_forever()

    node = supervisor()
    part = serve(node, run)
    async with running(node):
        await part.until(State.RESTARTING)
        assert trio.current_time() == 3.5 * PATIENCE


async def test_a_call_in_flight_to_a_stuck_service_is_disconnected(autojump_clock: object) -> None:
    async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def ask(_: None) -> None:
        await trio.sleep_forever()

    node = supervisor()
    part = serve(node, run)
    async with running(node):
        with pytest.raises(Disconnected, match="no progress for 60 s"):
            await part.call(ask)


async def test_a_thread_that_hangs_is_lent_to_nobody_and_the_next_life_waits_for_its_end() -> None:
    let_go, lives = threading.Event(), []

    async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        lives.append(trio.current_time())
        task_status.started()
        if len(lives) == 1:
            await trio.to_thread.run_sync(let_go.wait)
        await stay(report)

    node = supervisor()
    part = node.reporting("part", run, patience=0.05)
    try:
        async with running(node):
            await part.until(State.ENDING)
            assert part.health.reason == (
                "it made no progress for 0.05 s; a new life begins as soon as this one is over"
            )
            assert "a thread hangs" in part.health.remedy
            with pytest.raises(Disconnected), part.lent():
                pass
            await trio.sleep(0.1)
            assert (part.state, len(lives)) == (State.ENDING, 1)
            let_go.set()
            await part.until(State.HEALTHY)
            assert len(lives) == 2
    finally:
        let_go.set()


async def test_nobody_is_stuck_because_the_whole_process_stood_still(
    autojump_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await stay(report)

    node = supervisor()
    part = serve(node, run)
    async with running(node):
        await trio.sleep(10)
        autojump_clock.jump(3600)  # as when a machine was suspended
        await trio.sleep(5 * PATIENCE)
        assert part.state is State.HEALTHY
        assert part.health.failures == 0


async def test_what_waits_for_ever_beats_meanwhile_and_misses_nothing(autojump_clock: object) -> None:
    send, receive = trio.open_memory_channel[int](0)
    bell, got = trio.Event(), list[int]()

    async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        while not bell.is_set():
            await wait_beating(bell, report, 3600)
        async for number in Beating(report, receive):
            got.append(number)
        await stay(report)

    node = supervisor()
    part = serve(node, run)
    async with running(node):
        await trio.sleep(10 * PATIENCE)
        bell.set()
        for number in range(5):
            await trio.sleep(3 * PATIENCE)
            await send.send(number)
        send.close()
        await trio.sleep(3 * PATIENCE)
        assert got == [0, 1, 2, 3, 4]
        assert part.health.failures == 0


async def test_a_loop_that_hangs_in_its_body_does_not_beat(autojump_clock: object) -> None:
    send, numbers = trio.open_memory_channel[int](1)
    send.send_nowait(1)

    async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        async for _ in Beating(report, numbers):
            await trio.sleep_forever()

    node = supervisor()
    part = serve(node, run)
    async with running(node):
        await part.until(State.RESTARTING)
        assert part.health.causes[0].kind == "Stuck stuck"


# Causes


class Fails:
    """A run function that dies at once, of one error after the other."""

    def __init__(self, *errors: Exception, up_for: float = 0.0) -> None:
        self.errors = list(errors)
        self.up_for = up_for

    async def __call__(self, *, report: Report, task_status: trio.TaskStatus[None]) -> None:
        if self.errors:
            if self.up_for:
                task_status.started()
                for _ in range(10):
                    report.beat()
                    await trio.sleep(self.up_for / 10)
            raise self.errors.pop(0)
        task_status.started()
        await stay(report)


async def failed_so_often(part: Service[Any], times: int) -> None:
    while part.health.failures < times:  # noqa: ASYNC110  # each change is told to those who wait for a state
        await trio.sleep(1)


async def test_failures_are_grouped_by_cause_and_told_once(autojump_clock: object, logged: Logged) -> None:
    away = [WorldError("away", f"no answer from port {port}") for port in range(20)]
    node = supervisor(raise_bugs=False)
    part = serve(node, Fails(*away[:10], ZeroDivisionError("bug"), ZeroDivisionError("bug"), *away[10:]))
    async with running(node):
        await part.until(State.HEALTHY)
        bug, world = part.health.causes
        assert (bug.text, bug.count) == ("ZeroDivisionError: bug", 2)
        assert (world.text, world.count) == ("no answer from port 19", 20)
        assert world.first == 0
        assert bug.first < bug.last < world.last
        assert (part.health.failures, part.health.bugs) == (22, 2)
        told = [(entry["log_level"], entry["event"]) for entry in logged if entry["log_level"] != "debug"]
        failed, bugged = ("warning", "service failed"), ("error", "bug in a service")
        assert told == [failed, bugged, failed]
        assert sum(entry["event"] == "service failed" for entry in logged) == 22  # each retry, for those who debug
        await trio.sleep(HEALTHY_ENOUGH + 1)
        [well] = [entry for entry in logged if entry["event"] == "service is well again"]
        assert (well["failures"], well["seconds"]) == (22, pytest.approx(world.last + HEALTHY_ENOUGH, abs=61))


async def test_a_service_that_comes_and_goes_is_not_well_and_told_of_once(
    autojump_clock: object, logged: Logged
) -> None:
    away = [WorldError("away", "no answer") for _ in range(30)]
    node = supervisor()
    part = serve(node, Fails(*away, up_for=5))
    async with running(node):
        await failed_so_often(part, 30)
        assert [entry["event"] for entry in logged if entry["log_level"] != "debug"] == ["service failed"]


async def test_once_it_was_well_the_same_cause_is_told_again(autojump_clock: object, logged: Logged) -> None:
    node = supervisor()
    part = serve(node, Fails(*(WorldError("away", "no answer") for _ in range(2)), up_for=2 * HEALTHY_ENOUGH))
    async with running(node):
        await failed_so_often(part, 2)
        events = [entry["event"] for entry in logged if entry["log_level"] != "debug"]
        assert events == ["service failed", "service is well again", "service failed"]


async def test_a_few_causes_are_kept_the_newest_last(autojump_clock: object) -> None:
    errors = [WorldError(f"cause_{number}", f"{number}") for number in range(MOST_CAUSES + 2)]
    node = supervisor()
    part = serve(node, Fails(*errors))
    async with running(node):
        await part.until(State.HEALTHY)
        assert [cause.text for cause in part.health.causes] == [str(number) for number in range(2, MOST_CAUSES + 2)]


async def test_every_state_but_healthy_says_what_can_be_done_and_when_it_last_was_well(autojump_clock: object) -> None:
    node, seen = supervisor(), dict[State, str]()
    part = serve(node, Fails(WorldError("no_electrum_server", "nobody answers"), NeedsUser("locked", "unlock it")))
    behind = node.reporting("behind", Fails(), [part])

    def look() -> None:
        for record in node.health():
            seen[record.state] = record.remedy
            assert bool(record.remedy) is (record.state is not State.HEALTHY)

    look()
    async with running(node):
        await part.until(State.RESTARTING)
        look()
        assert "another chain server" in part.health.remedy
        assert behind.health.state is State.WAITING
        await part.until(State.BLOCKED)
        look()
        assert part.health.remedy == "unlock it"
        never = part.health
        assert never.last_success is None
        part.restart()
        await part.until(State.HEALTHY)
        look()
        await trio.sleep(100)
        now = trio.current_time()
        part.degraded("a little slow")
        look()
        await trio.sleep(50)
        assert part.health.last_success == now
        part.fresh()
        assert part.health.last_success == now + 50
        part.stop()
        look()
        await part.until(State.STOPPED)
        look()
    assert set(seen) == set(State)


# Repairs


class Repairs:
    def __init__(self) -> None:
        self.done: list[str] = []
        self.go_on = trio.Event()

    async def resync(self) -> None:
        await self.go_on.wait()
        self.done.append("resync")

    async def aside(self) -> None:
        await trio.lowlevel.checkpoint()
        self.done.append("move-aside")

    def all(self) -> list[Repair]:
        return [
            Repair("resync", "look at everything again", "", self.resync, always=True),
            Repair("move-aside", "move the file aside", "what is in it is not seen", self.aside),
        ]


def offered(part: Service[Any]) -> list[str]:
    return [repair.name for repair in part.health.repairs]


async def test_a_repair_is_offered_always_or_while_the_life_or_its_end_names_it(autojump_clock: object) -> None:
    node, repairs = supervisor(), Repairs()
    repairs.go_on.set()
    blocked = NeedsUser("damaged", "move it aside", repairs=["move-aside"])
    part = serve(node, Fails(blocked), repairs=repairs.all())
    assert offered(part) == ["resync"]
    async with running(node):
        await part.until(State.BLOCKED)
        assert offered(part) == ["resync", "move-aside"]
        assert part.health.repairs[1].consequence == "what is in it is not seen"
        await part.mend("move-aside")
        part.restart()
        await part.until(State.HEALTHY)
        assert offered(part) == ["resync"]
        with pytest.raises(Conflict, match="move-aside is not offered now"):
            await part.mend("move-aside")
        with pytest.raises(NotFound, match="there are: resync, move-aside"):
            await part.mend("explode")
        part.degraded("a page is damaged", repairs=["move-aside"])
        assert offered(part) == ["resync", "move-aside"]
        await part.mend("move-aside")
        part.recovered()
        assert offered(part) == ["resync"]
        await part.mend("resync")
    assert repairs.done == ["move-aside", "move-aside", "resync"]


async def test_one_repair_at_a_time() -> None:
    node, repairs = supervisor(), Repairs()
    part = serve(node, Fails(), repairs=repairs.all())
    async with running(node), trio.open_nursery() as nursery:
        await part.until(State.HEALTHY)
        nursery.start_soon(part.mend, "resync")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Conflict, match="resync of part is under way"):
            await part.mend("resync")
        repairs.go_on.set()
    assert repairs.done == ["resync"]


# At run time


async def test_a_service_that_is_added_later_is_begun_and_seen(autojump_clock: object) -> None:
    node = supervisor()
    seen: list[list[str]] = []

    async def look() -> None:
        async for records in node.changes():
            seen.append([record.name for record in records])

    async with running(node), trio.open_nursery() as looking:
        looking.start_soon(look)
        await trio.testing.wait_all_tasks_blocked()
        part = serve(node, Fails())
        await part.until(State.HEALTHY)
        with pytest.raises(ValueError, match="two services named part"):
            serve(node, Fails())
        await trio.testing.wait_all_tasks_blocked()
        looking.cancel_scope.cancel()
    assert seen[0] == []
    assert seen[-1] == ["part"]


# The services of a node


@pytest.mark.parametrize(("kind", "build"), [(MakerConfig, Maker.build), (TakerConfig, Taker.build)])
def test_every_service_of_a_node_has_patience(tmp_path: Path, kind: Any, build: Any) -> None:
    text = f"""
        network = "regtest"
        electrum = ["127.0.0.1:1"]
        data = "{tmp_path}"
        {"makers" if kind is TakerConfig else "#"} = ["{"02" * 32}@127.0.0.1:1"]
        [oracle]
        url = "http://127.0.0.1:1"
        announcement_key = "{"02" * 32}"
        attestation_key = "{"03" * 32}"
        [prices]
        url = "ws://127.0.0.1:1"
    """
    (tmp_path / "node.toml").write_text(text)
    config = load(kind, paths=[tmp_path / "node.toml"], environ={}, flags={})
    with bind_api(HostPort("127.0.0.1", 0)) as listener:
        services = build(config, listener).core.supervisor.services
    assert len(services) > 20
    assert [service.name for service in services if service.patience == math.inf] == []
