"""A service that goes takes others with it: the log has one line for the cause and one for all that it took."""

from __future__ import annotations

from functools import partial

import trio
from structlog.testing import capture_logs

from node.fallen import TOLD_AFTER
from node.health import State
from node.supervision import Service, Supervisor
from protocols.errors import WorldError


async def lend(*, task_status: trio.TaskStatus[str]) -> None:
    task_status.started("api")
    await trio.sleep_forever()


async def borrow(needed: Service[str], *, task_status: trio.TaskStatus[str]) -> None:
    with needed.lent():
        task_status.started("api")
        await trio.sleep_forever()


async def test_what_goes_with_another_is_told_in_one_line_with_the_first_cause(autojump_clock: object) -> None:
    gone = trio.Event()

    async def store(*, task_status: trio.TaskStatus[str]) -> None:
        task_status.started("api")
        if not gone.is_set():
            await gone.wait()
            raise WorldError("disk_error", "the disk is away")
        await trio.sleep_forever()

    supervisor = Supervisor(raise_bugs=True)
    first = supervisor.service("store", store)
    second = supervisor.service("positions", partial(borrow, first), [first])
    third = [supervisor.service(name, partial(borrow, second), [second]) for name in ("contracts", "locks", "bumping")]
    alone = supervisor.service("prices", lend)
    with capture_logs() as logged:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            for each in (second, *third):
                await each.until(State.HEALTHY)
            gone.set()
            await trio.sleep(TOLD_AFTER + 5)
            for each in (second, *third):
                await each.until(State.HEALTHY)
                assert each.health.failures == 1
            await trio.sleep(300)
            nursery.cancel_scope.cancel()
    told = [entry for entry in logged if entry["log_level"] not in ("debug", "info")]
    assert [(entry["event"], entry.get("service")) for entry in told] == [
        ("service failed", "store"),
        ("services ended with one that they need", None),
    ]
    assert told[1]["needed"] == "store"
    assert sorted(told[1]["services"]) == ["bumping", "contracts", "locks", "positions"]
    assert "the disk is away" in told[1]["reason"]
    assert [entry["service"] for entry in logged if entry["event"] == "service is well again"] == ["store"]
    assert alone.health.failures == 0


async def test_each_cause_has_its_line(autojump_clock: object) -> None:
    supervisor = Supervisor(raise_bugs=True)
    needed = [supervisor.service(name, lend) for name in ("store", "chain")]
    others = [supervisor.service(f"of {each.name}", partial(borrow, each), [each]) for each in needed]
    with capture_logs() as logged:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            for each in others:
                await each.until(State.HEALTHY)
            for each in needed:
                each.stop()
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
    told = {entry["needed"]: entry["services"] for entry in logged if "needed" in entry}
    assert told == {"store": ["of store"], "chain": ["of chain"]}
