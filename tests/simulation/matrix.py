"""Every step × every fault × each side of each scenario, one at a time; nothing is drawn."""

from __future__ import annotations

from attrs import evolve, frozen

from tests.simulation.faults import DISK, Fault, Faults, Step, faults_of
from tests.simulation.run import Outcome, run
from tests.simulation.scenarios import SCENARIOS

NAMES = tuple(SCENARIOS)


@frozen
class Case:
    """One fault at one step of one scenario; without a fault, nothing goes wrong."""

    scenario: str
    step: Step | None = None
    fault: Fault | None = None

    def __str__(self) -> str:
        if self.step is None or self.fault is None:
            return f"{self.scenario}, undisturbed"
        return f"{self.scenario}, {self.step}: {self.fault.value}"

    def run(self) -> Outcome:
        plan = {self.step: self.fault} if self.step is not None and self.fault is not None else {}
        outcome = run(SCENARIOS[self.scenario], faults=Faults(plan=plan))
        if plan and not outcome.struck:
            return evolve(outcome, violations=(*outcome.violations, "it never came to this step"))
        return outcome


def cases(scenario: str) -> list[Case]:
    """What there is to be tried, by what an undisturbed run did."""
    undisturbed = Case(scenario)
    steps = [step for step in undisturbed.run().trace if step.what == DISK or step.what in SCENARIOS[scenario].paths]
    return [undisturbed, *(Case(scenario, step, fault) for step in steps for fault in faults_of(step))]
