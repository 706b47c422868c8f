"""What can go wrong at which step of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from attrs import Factory, define, field, frozen

DISK = "disk"
"""Stands in the place of a protocol's path."""
DELAY = 45.0
"""Seconds that a delayed message takes: longer than a block, shorter than anybody's patience."""


@frozen
class Step:
    """A moment at which something can go wrong."""

    node: str
    what: str
    """The protocol's path, or `DISK`."""
    number: int
    """Of this node's messages of this protocol, or of its appends to positions, from 0."""
    name: str = field(default="", eq=False)
    """The message's type, or the events' names."""

    def __str__(self) -> str:
        return f"{self.node} {self.what.removeprefix('/cfd/')} {self.number} {self.name}".rstrip()


class Fault(Enum):
    # of a message
    CUT_BEFORE = "connection cut, message lost"
    CUT_AFTER = "connection cut, message delivered"
    DROP = "message dropped"
    TWICE = "message sent twice"
    DELAY = "message delayed"
    SILENT = "silent from here on"
    # of either: the node is dead, and begins anew with what is on its disk
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"
    # of an append
    DISK_FULL = "disk full"


OF_MESSAGES = (
    Fault.CUT_BEFORE,
    Fault.CUT_AFTER,
    Fault.DROP,
    Fault.TWICE,
    Fault.DELAY,
    Fault.SILENT,
    Fault.CRASH_BEFORE,
    Fault.CRASH_AFTER,
)
OF_APPENDS = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.DISK_FULL)


def faults_of(step: Step) -> tuple[Fault, ...]:
    return OF_APPENDS if step.what == DISK else OF_MESSAGES


Deceit = Callable[[Step, dict[str, Any]], dict[str, Any] | None]
"""Rewrites a message, decoded, that a node is about to send; None leaves it as it is."""


@define
class Faults:
    """Which fault strikes when, and what could have been struck."""

    plan: Mapping[Step, Fault] = Factory(dict)
    draw: Callable[[Step], Fault | None] = lambda _: None
    """For steps that the plan does not name."""
    deceits: dict[str, Deceit] = Factory(dict)
    """By the node that deceives."""
    open: bool = True
    """While not, nothing strikes, and no step is traced."""
    trace: list[Step] = Factory(list)
    struck: list[tuple[Step, Fault]] = Factory(list)
    _counts: Counter[tuple[str, str]] = Factory(Counter)
    _silent: set[tuple[str, str]] = Factory(set)

    def at(self, node: str, what: str, name: str) -> tuple[Step, Fault | None]:
        """The step that is being taken, and what strikes it."""
        step = Step(node, what, self._counts[node, what], name)
        self._counts[node, what] += 1
        if (node, what) in self._silent:
            return step, Fault.DROP
        if not self.open:
            return step, None
        self.trace.append(step)
        fault = self.plan.get(step) or self.draw(step)
        if fault is not None:
            self.struck.append((step, fault))
        if fault is Fault.SILENT:
            self._silent.add((node, what))
            fault = Fault.DROP
        return step, fault

    def end(self) -> None:
        """From now on everybody is left alone."""
        self.open = False
        self._silent.clear()
