"""Measurements that can be repeated: each module here has a function `figures` that yields what it measured.

Ours and the reference are measured in the same run, on the same machine, so that their ratio means something where the
figures alone do not.
"""

import statistics
import time
from collections.abc import Callable, Sequence

from attrs import frozen


@frozen
class Figure:
    """One number, beside what it is compared with; `spread` is (largest − smallest) / median over the repetitions."""

    name: str
    ours: float
    unit: str
    reference: float | None = None
    reference_name: str = ""
    spread: float | None = None

    @property
    def ratio(self) -> float | None:
        """Ours divided by the reference."""
        return self.ours / self.reference if self.reference else None

    def __str__(self) -> str:
        text = f"{self.name}: {_number(self.ours)} {self.unit}"
        if self.ratio is not None and self.reference is not None:
            text += f", {self.reference_name} {_number(self.reference)} {self.unit}, ratio {self.ratio:.3g}"
        if self.spread is not None:
            text += f", spread {self.spread:.0%}"
        return text


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


@frozen
class Seconds:
    """How long something took: the median of the repetitions, and their spread."""

    median: float
    spread: float


def summary(seconds: Sequence[float]) -> Seconds:
    median = statistics.median(seconds)
    return Seconds(median, (max(seconds) - min(seconds)) / median)


def timed(function: Callable[[], object], *, times: int = 7) -> Seconds:
    """Call `function` once to warm up and `times` times to measure."""
    function()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return summary(seconds)
