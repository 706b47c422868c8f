"""``scripts/chaos --proof``: takes each rule and each refusal out in turn; something must turn red without it.

Each proof runs in a process of its own, forked from one that has imported everything: what the code remembers while a
rule is missing is never seen by another proof.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from attrs import Factory, define, frozen

from tests.simulation.refusals import REFUSALS
from tests.simulation.removal import Removal, together
from tests.simulation.rules import RULES, Rule, Witness

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
LIMIT = 120.0
"""Seconds, on the machine's clock, after which a witness that does not come back counts as hanging."""
BROKEN = ("NameError", "UnboundLocalError", "SyntaxError", "NothingToRemove", "ImportError", "fixture")
"""What a removal that is wrong itself would raise: red for no reason."""
EVERY: tuple[Rule, ...] = (*RULES, *REFUSALS)
NOTHING: Removal = together()


@frozen
class Verdict:
    """What one witness said while something was missing, or while nothing was."""

    reason: str | None
    """Why it turned red; None: it stayed green."""
    seconds: float


@frozen
class Proof:
    rule: Rule
    without: Mapping[Witness, Verdict]
    """By witness, without the rule."""

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
    tasks = [(rule.removed, witness) for rule in rules for witness in rule.seen_by]
    verdicts = _in_processes(tasks, jobs)
    for rule in rules:
        yield Proof(rule, {witness: next(verdicts) for witness in rule.seen_by})


def sane(witnesses: Iterable[Witness], jobs: int = 2) -> Iterator[tuple[Witness, Verdict]]:
    """Each witness while nothing is missing: it must stay green."""
    distinct = list(dict.fromkeys(witnesses))
    return zip(distinct, _in_processes([(NOTHING, witness) for witness in distinct], jobs), strict=True)


def preload(witnesses: Iterable[Witness]) -> None:
    """Import what they need, once for all processes."""
    for name in {each.split("::")[0] for each in witnesses if isinstance(each, str)}:
        importlib.import_module(f"tests.{name.removesuffix('.py')}")


# --- one witness ------------------------------------------------------------------------------------------------------


def ask(removed: Removal, witness: Witness) -> Verdict:
    """In this process, which is not to be used for anything else afterwards."""
    began = time.monotonic()
    reason = _tests(removed, [witness]) if isinstance(witness, str) else _cell(removed, witness)
    return Verdict(reason, time.monotonic() - began)


def _cell(removed: Removal, case: Any) -> str | None:
    with removed():
        try:
            violations = case.run().violations
        except Exception as error:  # noqa: BLE001  # however the simulator finds it out
            return f"raised {error!r}"
    return "; ".join(violations) or None


@define
class _Without:
    """A plugin of pytest: runs the tests without something, and remembers why the first one failed."""

    removed: Removal
    reasons: list[str] = Factory(list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        hypothesis.settings.register_profile("proof", database=None, deadline=None)  # what fails here is no regression
        hypothesis.settings.load_profile("proof")
        with self.removed():
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            lines = [line[1:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")]
            self.reasons.append(lines[0] if lines else report.longreprtext.strip().splitlines()[-1])


def _tests(removed: Removal, ids: Sequence[str]) -> str | None:
    plugin = _Without(removed)
    arguments = ["-x", "-q", "--assert=plain", "--no-header", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    with contextlib.chdir(ROOT):
        status = pytest.main([*arguments, *(f"{TESTS}/{each}" for each in ids)], plugins=[plugin])
    if plugin.reasons:
        return plugin.reasons[0]
    return None if status == pytest.ExitCode.OK else f"NothingToRemove: pytest ended with {status!r}"


# --- processes --------------------------------------------------------------------------------------------------------


def _in_processes(tasks: Sequence[tuple[Removal, Witness]], jobs: int) -> Iterator[Verdict]:
    """In the order of the tasks, so many at a time."""
    context = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[int, Any, float]] = {}
    done: dict[int, Verdict] = {}
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
                done[at] = _received(ready)
                process.join()
            for late in [each for each, (*_, began) in running.items() if time.monotonic() - began > LIMIT]:
                at, process, _ = running.pop(late)
                process.kill()
                process.join()
                done[at] = Verdict(f"no end within {LIMIT:g} s", LIMIT)
        yield done.pop(number)


def _received(connection: Connection) -> Verdict:
    try:
        verdict: Verdict = connection.recv()
    except EOFError:
        return Verdict("the process died", 0.0)
    return verdict


def _child(answer: Connection, removed: Removal, witness: Witness) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(silence, descriptor)
    answer.send(ask(removed, witness))


# --- the table --------------------------------------------------------------------------------------------------------


def table(rules: Sequence[Rule], jobs: int = 2, say: Callable[[str], None] = print) -> int:
    """How many rules and witnesses are not as they should be."""
    began = time.monotonic()
    preload(witness for rule in rules for witness in rule.seen_by)
    problems: list[str] = []
    for witness, verdict in sane((witness for rule in rules for witness in rule.seen_by), jobs):
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
    parser = argparse.ArgumentParser(prog="scripts/chaos --proof", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only rules in whose name this stands")
    parser.add_argument("--jobs", type=int, default=2, metavar="J", help="processes")
    said = parser.parse_args(arguments)
    chosen = [rule for rule in EVERY if not said.words or any(word in rule.name for word in said.words)]
    return 1 if table(chosen, said.jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
