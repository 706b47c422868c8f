"""Is the clock right? By what others say, of whom some are wrong."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from node.chain.chainsync import Tip
from node.chain.electrum import ElectrumClient
from node.chain.latest import Changes, Latest
from node.clock import Clock
from node.clock_check import CHAIN, KEPT_FOR, ClockCheck, date_of
from node.health import State
from node.networks import NETWORKS
from node.supervision import Service

NOW = 1_800_000_000.0


def check(ahead: float = 0.0) -> ClockCheck:
    """Of a clock that is so many seconds ahead of the true time, which is trio's."""
    return ClockCheck(Clock(wall=lambda: NOW + ahead + trio.current_time()))


def true() -> float:
    return NOW + trio.current_time()


def running(
    nursery: trio.Nursery, clocks: ClockCheck, chain: Service[ElectrumClient] | None = None
) -> Service[ClockCheck]:
    network = NETWORKS["regtest" if chain is None else "mainnet"]

    async def run(*, task_status: trio.TaskStatus[ClockCheck]) -> None:
        await clocks.run(chain or Service("chain", run), network, report=service, task_status=task_status)  # type: ignore[arg-type]

    service: Service[ClockCheck] = Service("clock", run, clock=clocks.clock, raise_bugs=True)
    nursery.start_soon(service.supervise)
    return service


async def test_nobody_has_said_anything(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    clocks = check(3600.0)
    service = running(nursery, clocks)
    await trio.sleep(100)
    assert (service.state, clocks.offset()) == (State.HEALTHY, None)


@pytest.mark.parametrize(
    ("ahead", "said"),
    [(0.0, ""), (119.0, ""), (-119.0, ""), (200.0, "3 min 20 s ahead"), (-200.0, "3 min 20 s behind")],
)
async def test_a_clock_is_warned_of_that_is_more_than_two_minutes_off(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, ahead: float, said: str
) -> None:
    clocks = check(ahead)
    service = running(nursery, clocks)
    for source in ("oracle", "exchange", "maker 1", "maker 2"):
        clocks.heard(source, true())
    await trio.sleep(31)
    assert clocks.offset() == pytest.approx(-ahead)
    if said:
        assert service.state is State.DEGRADED
        assert service.health.reason.startswith(f"the clock is {said} (by: ")
        assert "NTP" in service.health.remedy
    else:
        assert service.state is State.HEALTHY
    await trio.sleep(KEPT_FOR)  # what was said that long ago is forgotten
    assert (service.state, clocks.offset()) == (State.HEALTHY, None)


async def test_years(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    clocks = check(-3 * 365 * 86400.0)
    service = running(nursery, clocks)
    clocks.heard("oracle", true())
    await trio.sleep(31)
    assert "the clock is 26280 h 0 min behind" in service.health.reason


async def test_one_source_of_three_that_lies_moves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    clocks = check()
    for source, offset in (("oracle", 10_000.0), ("exchange", 1.0), ("maker 1", -2.0)):
        clocks.heard(source, true() + offset)
    assert clocks.offset() == 1.0
    for number in range(100):  # and makers, however many, are one
        clocks.heard(f"maker {number}", true() + 5_000)
    assert clocks.offsets().keys() == {"oracle", "exchange", "makers"}
    clocks.heard("oracle", true())
    clocks.heard("oracle", true())  # by now it was wrong once
    assert clocks.offset() == 1.0


async def test_between_two_the_one_nearer_to_ours_counts(autojump_clock: trio.testing.MockClock) -> None:
    clocks = check()
    clocks.heard("oracle", true() + 10_000)
    clocks.heard("exchange", true() - 3)
    assert clocks.offset() == -3


@given(st.lists(st.floats(-(10**6), 10**6), min_size=1, max_size=7), st.floats(-100, 100))
def test_the_majority_decides(lies: list[float], off: float) -> None:
    async def main() -> None:
        clocks = check()
        for number, lie in enumerate(lies):
            clocks.heard(f"liar {number}", true() + lie)
        for number in range(len(lies) + 1):
            clocks.heard(f"honest {number}", true() + off)
        assert clocks.offset() == pytest.approx(off, abs=1e-3)
        assert not clocks.problem()

    trio.run(main, clock=trio.testing.MockClock())


class _Chain:
    """A connection whose tips come when a test says so."""

    def __init__(self, height: int) -> None:
        self._tip = Latest(tip_of(height, 0))

    @property
    def tip(self) -> Tip:
        return self._tip.value

    def tips(self) -> Changes[Tip]:
        return self._tip.changes()

    def show(self, height: int, time: float) -> None:
        self._tip.set(tip_of(height, time))


def tip_of(height: int, time: float) -> Tip:
    return Tip(height, height.to_bytes(32, "big"), bytes(68) + int(time).to_bytes(4, "little") + bytes(8))


async def test_new_blocks_tell_the_time_once_there_are_several(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    shown = _Chain(100)

    async def live(*, task_status: trio.TaskStatus[_Chain]) -> None:
        task_status.started(shown)
        await trio.sleep_forever()

    chain: Service[_Chain] = Service("chain", live)
    nursery.start_soon(chain.supervise)
    clocks = check(-600.0)
    service = running(nursery, clocks, chain)  # type: ignore[arg-type]
    await trio.sleep(1)
    shown.show(400, true() - 86400)  # many at once, which are old
    for height in range(401, 405):
        await trio.sleep(600)
        shown.show(height, true() - 20)
    await trio.sleep(31)
    assert (service.state, clocks.offset()) == (State.HEALTHY, None)
    shown.show(405, true() + 7000)  # a miner's own fancy
    await trio.sleep(31)
    assert clocks.offsets()[CHAIN] == pytest.approx(580, abs=2)
    assert "the clock is 9 min" in service.health.reason
    chain.restart()  # the next connection's first tip is no news
    shown.show(406, true() - 86400)
    await trio.sleep(31)
    assert clocks.offsets()[CHAIN] == pytest.approx(580, abs=2)


def test_dates_of_answers() -> None:
    assert date_of({"date": "Fri, 15 Jan 2027 08:00:00 GMT"}) == NOW + 0.5
    assert date_of({"date": "Fri, 15 Jan 2027 08:00:00 GMT", "age": "0"}) == NOW + 0.5
    for nothing in (
        {},
        {"date": "yesterday"},
        {"date": ""},
        {"date": "Fri, 15 Jan 99999 08:00:00 GMT"},
        {"date": "Fri, 15 Jan 2027 08:00:00 GMT", "age": "300"},  # a cache's
    ):
        assert date_of(nothing) is None
