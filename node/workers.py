"""Worker processes for what is pure and heavy: signing and checking a contract takes a core for tens of milliseconds.

A worker is told its work over a pipe, keeps what it computed once per process (points of events, shared hashes), and
is replaced when it dies.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

import anyio.to_process
import trio
from anyio import BrokenWorkerProcess

from node.health import UNREPORTED, Report
from protocols.errors import WorldError

R = TypeVar("R")

KEEP_WARM_EVERY = 120.0
"""Seconds; an idle worker is ended after 300."""
WARM_WITHIN = 60.0
"""Seconds; a process that hangs is given up then."""


async def in_worker_process(function: Callable[..., R], args: tuple[object, ...]) -> R:
    """Run a pure, picklable function in a worker process. Cancelled, it is abandoned and its process killed.

    A worker that dies on the way is replaced once: the function is pure. Raises what the function raises, or WorldError
    when no worker lives through it.
    """
    for last in (False, True):
        try:
            return await anyio.to_process.run_sync(function, *args, cancellable=True)
        except BrokenWorkerProcess as error:
            if last:
                raise WorldError("no_worker", f"worker processes die: {error.__cause__ or error}") from error
    raise AssertionError("the second try returns or raises")


async def keep_warm(
    *, report: Report = UNREPORTED, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The service: starts a worker ahead of the first contract, and shows when none can be had."""
    await _warm()
    task_status.started()
    while True:
        report.beat()
        await trio.sleep(min(KEEP_WARM_EVERY, report.beat_every))
        await _warm()


async def _warm() -> None:
    # anyio forgets a process whose start is cancelled, and leaves it running
    with trio.move_on_after(WARM_WITHIN, shield=True):
        await in_worker_process(_import_signing, ())
        return
    raise WorldError("no_worker", f"a worker process did not answer within {WARM_WITHIN:g} s")


def _import_signing() -> None:
    import_module("protocols.contract_setup")  # what a worker is there for
