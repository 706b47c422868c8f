"""Many contracts in one keeper: what happens to one of them is no matter of the others; one that hangs is noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from node.chain.broadcast import Broadcaster
from node.chain.monitor import Monitor
from node.clock import Clock
from node.eventstore.interface import EventStore
from node.eventstore.memory import MemoryBackend, run_memory_store
from node.health import UP, State
from node.position.book import Positions, run_positions
from node.position.commands import recover
from node.position.events import CODEC, stream_of
from node.position.keeper import ChainKeeper
from node.position.state import Position
from node.supervision import Service, Supervisor
from protocols.contract.terms import Role
from tests.lives import opened
from tests.positions import TRADER

MANY = 200


class Steps(trio.abc.Instrument):
    """How often tasks ran, by the name of their function."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.of[task.name.rpartition(".")[2]] += 1


def order_id(number: int) -> bytes:
    return number.to_bytes(16)


@asynccontextmanager
async def keeping(many: int, patience: float = 60.0) -> AsyncIterator[tuple[Supervisor, Service[Positions]]]:
    disk = MemoryBackend()
    events = tuple(map(CODEC.encode, opened(Role.TAKER).events))
    disk.write([partial(disk.append, stream_of(order_id(number)), 0, events, None) for number in range(many)])
    supervisor = Supervisor(raise_bugs=True)
    store: Service[EventStore] = supervisor.service("store", partial(run_memory_store, disk))
    positions = supervisor.service("positions", partial(run_positions, store), [store])

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        seed = TRADER[Role.TAKER].seed
        keeper = ChainKeeper(positions, Monitor(), Broadcaster(Clock()), seed, Clock(), report=contracts)
        await keeper.run(task_status=task_status)

    contracts = supervisor.service("contracts", run, [positions], patience=patience)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await contracts.until(*UP)
        yield supervisor, positions
        nursery.cancel_scope.cancel()


async def test_a_change_of_one_position_wakes_its_own_task_alone(autojump_clock: object) -> None:
    async with keeping(MANY) as (_, positions):
        await trio.testing.wait_all_tasks_blocked()
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        changed = await positions.call(Positions.execute, order_id(7), recover("a test"))
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(steps)
        assert changed.recovered
        assert 1 <= steps.of["_keep"] < 20
        assert steps.of["_watch"] == steps.of["_let_go"] == 0


async def test_one_contract_that_hangs_is_the_keepers_end(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(keeper: ChainKeeper, positions: Positions, position: Position) -> dict[bytes, bytes]:
        if position.id == order_id(1) and position.recovered:
            await trio.sleep_forever()
        return {}

    monkeypatch.setattr(ChainKeeper, "_due", hang)
    async with keeping(3) as (supervisor, positions):
        contracts = supervisor["contracts"]
        await trio.sleep(300)
        assert (contracts.state, contracts.health.failures) == (State.HEALTHY, 0), "to wait is no work"
        await positions.call(Positions.execute, order_id(1), recover("a test"))
        await trio.sleep(150)
        assert contracts.health.failures >= 1
        assert "no progress" in contracts.health.last_error
