"""``scripts/chaos --proof``: takes each rule and each refusal out in turn; something must turn red without it.

Each proof runs in a process of its own, forked from one that has imported everything: what the code remembers while a
rule is missing is never seen by another proof.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
from attrs import Factory, define, frozen

from tests.simulation.guards import GUARDS
from tests.simulation.hearsay import EVENTS, NETWORK, ORACLE, SAID
from tests.simulation.matrix import Case
from tests.simulation.on_disk import FIRST
from tests.simulation.refusals import REFUSALS
from tests.simulation.removal import NothingToRemove, Removal, together
from tests.simulation.rules import RULES, Rule, Witness

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
TOGETHER = 12
"""How many witnesses one process hears while nothing is missing."""
LIMIT = 120.0
"""Seconds, on the machine's clock, after which a witness that does not come back counts as hanging."""
BROKEN = ("NameError", "UnboundLocalError", "SyntaxError", "NothingToRemove", "ImportError", "fixture")
"""What a removal that is wrong itself would raise: red for no reason."""
GROUPS: Mapping[str, tuple[Rule, ...]] = {
    "1": FIRST,
    **RULES,
    "guards": GUARDS,
    **REFUSALS,
    "oracle": ORACLE,
    "events": EVENTS,
    "said": SAID,
    "network": NETWORK,
}
EVERY: tuple[Rule, ...] = tuple(rule for group in GROUPS.values() for rule in group)
NOTHING: Removal = together()


@frozen
class Verdict:
    """What one witness said while something was missing, or while nothing was."""

    reason: str | None
    """Why it turned red; None: it stayed green."""
    seconds: float


Answer = Mapping[Witness, Verdict]


@frozen
class Proof:
    rule: Rule
    without: Answer

    @property
    def problem(self) -> str | None:
        """Why this proves nothing; None if it does."""
        if not self.without:
            return "nobody looks"
        for witness, verdict in self.without.items():
            if verdict.reason is None:
                return f"{witness} stays green"
            if any(word in verdict.reason for word in BROKEN):
                return f"{witness} is red for another reason: {verdict.reason}"
        return None


def prove(rules: Sequence[Rule], jobs: int = 2) -> Iterator[Proof]:
    """Each rule, as soon as all its witnesses spoke, in order."""
    answers = _in_processes([(rule.removed, rule.seen_by) for rule in rules], jobs)
    for rule, answer in zip(rules, answers, strict=True):
        yield Proof(rule, answer)


def sane(witnesses: Iterable[Witness], jobs: int = 2) -> Answer:
    """Each witness while nothing is missing: it must stay green."""
    distinct = list(dict.fromkeys(witnesses))
    parts = [tuple(distinct[at : at + TOGETHER]) for at in range(0, len(distinct), TOGETHER)]
    return {
        each: verdict
        for answer in _in_processes([(NOTHING, part) for part in parts], jobs)
        for each, verdict in answer.items()
    }


def preload(witnesses: Iterable[Witness]) -> None:
    """Import what they need, once for all processes."""
    for name in {each.split("::")[0] for each in witnesses if isinstance(each, str)}:
        importlib.import_module(f"tests.{name.removesuffix('.py')}")


# --- witnesses --------------------------------------------------------------------------------------------------------


def ask(removed: Removal, witnesses: Sequence[Witness]) -> Answer:
    """In this process, which is not to be used for anything else afterwards."""
    tests = _tests(removed, [each for each in witnesses if isinstance(each, str)])
    cells = {each: _cell(removed, each) for each in witnesses if not isinstance(each, str)}
    return {each: tests[each] if isinstance(each, str) else cells[each] for each in witnesses}


def _cell(removed: Removal, case: Case) -> Verdict:
    began = time.monotonic()
    with removed():
        try:
            violations = case.run().violations
        except Exception as error:  # noqa: BLE001  # however the simulator finds it out
            violations = (f"raised {error!r}",)
    return Verdict("; ".join(violations) or None, time.monotonic() - began)


@define
class _Without:
    """A plugin of pytest: runs the tests without something, and remembers why they failed."""

    removed: Removal
    reports: list[pytest.TestReport] = Factory(list)
    stale: str = "NothingToRemove: there is no such test"
    """Why no test was run, if none was."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        try:
            with self.removed():
                return (yield)
        except NothingToRemove as error:
            self.stale = f"NothingToRemove: {error}"
            raise

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    def verdict(self, witness: str) -> Verdict:
        reports = [each for each in self.reports if each.nodeid.startswith(f"tests/{witness}")]
        reasons = [_reason(each.longreprtext) for each in reports if each.failed]
        if not reports:
            reasons = [self.stale]
        return Verdict(reasons[0] if reasons else None, sum(each.duration for each in reports))


def _reason(text: str) -> str:
    """What failed, of a traceback in pytest's short form; of a bare assertion its line."""
    lines = [line for line in text.splitlines() if line.strip(" ^|+-")]
    for before, line in itertools.pairwise(["", *lines]):
        if line.startswith("E "):
            told = line[1:].strip()
            return before.strip() if told == "AssertionError" else told
    return lines[-1].strip() if lines else "failed"


def _tests(removed: Removal, ids: Sequence[str]) -> dict[str, Verdict]:
    if not ids:
        return {}
    plugin = _Without(removed)
    # no plugin but trio's is needed, and no failure is to be remembered as a regression
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = [
        "-q",
        "--no-header",
        "--assert=plain",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "-p",
        "pytest_trio.plugin",
    ]
    with contextlib.chdir(ROOT):
        pytest.main([*options, "--rootdir", str(ROOT), *(f"tests/{each}" for each in ids)], plugins=[plugin])
    return {each: plugin.verdict(each) for each in ids}


# --- processes --------------------------------------------------------------------------------------------------------


def _in_processes(tasks: Sequence[tuple[Removal, tuple[Witness, ...]]], jobs: int) -> Iterator[Answer]:
    """In the order of the tasks, so many at a time."""
    context = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[int, Any, float]] = {}
    done: dict[int, Answer] = {}
    waiting = list(reversed(list(enumerate(tasks))))
    for number in range(len(tasks)):
        while number not in done:
            while waiting and len(running) < jobs:
                at, task = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(theirs, *task))
                process.start()
                theirs.close()
                running[ours] = at, process, time.monotonic()
            for ready in wait(list(running), timeout=1.0):
                assert isinstance(ready, Connection)
                at, process, _ = running.pop(ready)
                done[at] = _received(ready, tasks[at][1])
                process.join()
            for late in [each for each, (*_, began) in running.items() if time.monotonic() - began > LIMIT]:
                at, process, _ = running.pop(late)
                process.kill()
                process.join()
                done[at] = dict.fromkeys(tasks[at][1], Verdict(f"no end within {LIMIT:g} s", LIMIT))
        yield done.pop(number)


def _received(connection: Connection, witnesses: tuple[Witness, ...]) -> Answer:
    try:
        verdicts: list[Verdict] = connection.recv()
    except EOFError:
        verdicts = [Verdict("the process died", 0.0)] * len(witnesses)
    return dict(zip(witnesses, verdicts, strict=True))


def _child(answer: Connection, removed: Removal, witnesses: tuple[Witness, ...]) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(silence, descriptor)
    answer.send(list(ask(removed, witnesses).values()))


# --- the table --------------------------------------------------------------------------------------------------------


def table(rules: Sequence[Rule], jobs: int = 2, *, beside_tests: bool = False) -> int:
    """How many rules and witnesses are not as they should be. `beside_tests`: those that are tests run anyway, and are
    not asked while nothing is missing."""
    say, began = partial(print, flush=True), time.monotonic()
    witnesses = [witness for rule in rules for witness in rule.seen_by]
    preload(witnesses)
    problems: list[str] = []
    for witness, verdict in sane(
        (each for each in witnesses if not (beside_tests and isinstance(each, str))), jobs
    ).items():
        if verdict.reason is not None:
            problems.append(f"{witness} is red while nothing is missing: {verdict.reason}")
    for proof in prove(rules, jobs):
        say(f"{'red  ' if proof.problem is None else 'GREEN'} {proof.rule.name}")
        for witness, verdict in proof.without.items():
            say(f"        {witness} ({verdict.seconds:.1f} s): {(verdict.reason or 'green')[:160]}")
        if proof.problem is not None:
            problems.append(f"{proof.rule.name}: {proof.problem}")
    say(f"{len(rules)} rules in {time.monotonic() - began:.0f} s, {len(problems)} not as they should be")
    for problem in problems:
        say(f"FAILED {problem}")
    return len(problems)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument(
        "--proof", nargs="*", default=[], dest="words", metavar="WORD", help="only rules in whose name or group this is"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="J", help="processes")
    parser.add_argument(
        "--beside-tests",
        action="store_true",
        help="the whole suite is run, too: no test is heard while nothing is missing",
    )
    said = parser.parse_args(arguments)
    chosen = [
        rule
        for group, rules in GROUPS.items()
        for rule in rules
        if not said.words or any(word == group or (word not in GROUPS and word in rule.name) for word in said.words)
    ]
    return 1 if table(chosen, said.jobs, beside_tests=said.beside_tests) else 0


if __name__ == "__main__":
    sys.exit(main())
