"""``scripts/chaos --matrix`` and ``--seeds N``: runs in processes of their own, counted by what came of them."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial

from attrs import define, evolve, field

from tests.simulation.matrix import NAMES, Case, cases
from tests.simulation.random_runs import random_run
from tests.simulation.run import Outcome

LIMIT = 600
"""Seconds after which a run is taken for one that has no end."""
PROGRESS = 100
"""Runs between two words of how far it is."""


@define
class Tally:
    """What came of many runs."""

    outcomes: Counter[str] = field(factory=Counter)
    failed: list[str] = field(factory=list)
    runs: int = 0

    def add(self, name: str, outcome: Outcome | str) -> None:
        self.runs += 1
        violations: tuple[str, ...] = (outcome,) if isinstance(outcome, str) else outcome.violations
        if isinstance(outcome, Outcome):
            self.outcomes.update(f"{outcome.scenario}: {ended}" for ended in outcome.summary.split(", "))
        if violations:
            self.failed.append("\n    ".join((name, *violations)))
            print(f"FAILED {self.failed[-1]}", flush=True)

    def tell(self, seconds: float) -> int:
        for name, count in sorted(self.outcomes.items()):
            print(f"{count:6} {name}")
        print(f"{self.runs} runs in {seconds:.0f} s, {len(self.failed)} failed")
        return 1 if self.failed else 0


def _attempt(task: Callable[[], Outcome]) -> Outcome | str:
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    try:
        return evolve(task(), found=None, logs=())
    except Exception as error:  # noqa: BLE001  # one run that breaks must not hide the others
        told = f"{error!r} {error.__cause__ or ''}".rstrip()
    finally:
        signal.alarm(0)
    gc.collect()  # tasks that were broken off are closed here, and not in the midst of a later run
    return told


def _too_long(*_: object) -> None:
    raise TimeoutError(f"no end within {LIMIT} s")


def carry_out(tasks: Iterable[tuple[str, Callable[[], Outcome]]], jobs: int) -> int:
    tally, began = Tally(), time.monotonic()
    # what a run leaves behind is collected seldom: looking for it takes an eighth of the time
    with ProcessPoolExecutor(jobs, initializer=gc.set_threshold, initargs=(100_000, 20, 20)) as pool:
        names = {pool.submit(_attempt, task): name for name, task in tasks}
        for future in as_completed(names):
            tally.add(names[future], future.result())
            if not tally.runs % PROGRESS:
                print(f"{tally.runs} of {len(names)} runs, {len(tally.failed)} failed", file=sys.stderr, flush=True)
    return tally.tell(time.monotonic() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--matrix", nargs="*", metavar="SCENARIO", help=f"every step and fault; all of {', '.join(NAMES)}"
    )
    what.add_argument("--seeds", type=int, metavar="N", help="so many random runs")
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="K", help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, metavar="J", help="processes")
    said = parser.parse_args(arguments)
    if said.matrix is not None:
        every: list[Case] = [case for name in said.matrix or NAMES for case in cases(name)]
        return carry_out([(str(case), case.run) for case in every], said.jobs)
    return carry_out(
        [(f"seed {seed}", partial(random_run, seed)) for seed in range(said.first, said.first + said.seeds)], said.jobs
    )


if __name__ == "__main__":
    sys.exit(main())
