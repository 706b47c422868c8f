"""Whether this node's clock goes right, by what others say of theirs: offers, quotes and closes are judged by time.

Nobody is asked. The oracle's answers carry a date, the exchange's quotes and the makers' offers the moment in which
they were made, and new blocks roughly theirs. Each source counts once, makers together as one, and the median is what
holds: one that lies or lags moves nothing as soon as there are three. The user is told; nothing is ever set by this.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from statistics import median
from typing import NoReturn

import trio

from node.chain.electrum import ElectrumClient
from node.chain.headers import header_time
from node.clock import Clock
from node.health import UNREPORTED, UP, Report
from node.networks import Network
from node.supervision import Service
from protocols.errors import WorldError

TOLERANCE = 120.0
"""Seconds by which the clock may be off."""
KEPT_FOR = 3 * 3600.0
"""Seconds, by trio's clock, after which what a source said is forgotten."""
REMEDY = "set this machine's clock, best by NTP; until then offers, quotes and deadlines are judged by a wrong time"
EVERY = 30.0
SAMPLES = {"chain": 5}
"""How many moments a source must have told of before it counts: one block's time proves little."""
REMEMBERED = 11
"""Moments of a source whose median counts."""
MAKER = "maker "
"""What the names of makers begin with."""

ORACLE, EXCHANGE, CHAIN = "oracle", "exchange", "chain"


class ClockCheck:
    """Collects moments that others say it is now."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._heard: dict[str, deque[tuple[float, float]]] = {}

    def heard(self, source: str, moment: float) -> None:
        """`source` says that it is `moment` now, seconds since 1970."""
        samples = self._heard.setdefault(source, deque(maxlen=REMEMBERED))
        samples.append((trio.current_time(), moment - self.clock.now()))

    def listener(self, source: str) -> Callable[[float], None]:
        """`heard` for that source."""
        return lambda moment: self.heard(source, moment)

    def offsets(self) -> Mapping[str, float]:
        """Seconds by which each source's clock is ahead of ours."""
        oldest = trio.current_time() - KEPT_FOR
        found, makers = dict[str, float](), list[float]()
        for source, samples in self._heard.items():
            fresh = [offset for at, offset in samples if at >= oldest]
            if len(fresh) < SAMPLES.get(source, 1):
                continue
            if source.startswith(MAKER):
                makers.append(median(fresh))
            else:
                found[source] = median(fresh)
        return {**found, "makers": median(makers)} if makers else found

    def offset(self) -> float | None:
        """Seconds by which the others' clocks are ahead of ours, by their median; between two the one nearer to ours
        counts. None while nobody has said anything."""
        offsets = sorted(self.offsets().values())
        return min(offsets[(len(offsets) - 1) // 2 : len(offsets) // 2 + 1], key=abs, default=None)

    def problem(self) -> str:
        """What is wrong with the clock, empty if nothing is known to be."""
        offset, told = self.offset(), self.offsets()
        if offset is None or abs(offset) <= TOLERANCE:
            return ""
        by = ", ".join(f"{source} {_span(each)}" for source, each in sorted(told.items()))
        return f"the clock is {_span(offset)} (by: {by})"

    async def run(
        self,
        chain: Service[ElectrumClient],
        network: Network,
        *,
        report: Report = UNREPORTED,
        task_status: trio.TaskStatus[ClockCheck] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Judge every 30 s, and listen to the chain."""
        async with trio.open_nursery() as nursery:
            if network.retargets:  # where blocks come at will, so do their times
                nursery.start_soon(self._hear_blocks, chain)
            task_status.started(self)
            while True:
                if problem := self.problem():
                    report.degraded(problem, REMEDY)
                else:
                    report.recovered()
                if self._heard:
                    report.fresh()
                report.beat()
                await trio.sleep(EVERY)
        raise AssertionError("the loop above has no end")

    async def _hear_blocks(self, chain: Service[ElectrumClient]) -> NoReturn:
        """The time of each block that arrives while we look on; not of the one that was there before."""
        while True:
            await chain.until(*UP)
            try:
                with chain.lent() as client:
                    known = client.tip.height
                    async for tip in client.tips():
                        if tip.height == known + 1:  # of several at once nobody knows when they were new
                            self.heard(CHAIN, header_time(tip.header))
                        known = max(known, tip.height)
            except WorldError:
                await trio.sleep(1)


def _span(offset: float) -> str:
    minutes, seconds = divmod(math.floor(abs(offset) + 0.5), 60)
    length = f"{minutes} min {seconds} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
    return f"{length} {'behind' if offset > 0 else 'ahead'}"


def date_of(headers: Mapping[str, str]) -> float | None:
    """The moment of an HTTP answer that no cache has kept, seconds since 1970; None if it tells none."""
    if "date" not in headers or headers.get("age", "0") != "0":
        return None
    try:
        return parsedate_to_datetime(headers["date"]).timestamp() + 0.5  # whole seconds, rounded down
    except (ValueError, OverflowError):
        return None
