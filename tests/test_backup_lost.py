"""Nodes that lose their data directory, with the chain and the peer going on: what is restored of their backups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from node.backup.restore import put_together, write_records
from node.eventstore.memory import MemoryBackend
from tests.simulation.faults import Fault, Step
from tests.simulation.matrix import Case
from tests.simulation.run import Outcome
from tests.simulation.world import Player


@contextmanager
def losing(victim: str, lost: list[int]) -> Iterator[None]:
    """Whenever this node begins again, it does so on a machine that knows its seed and its backup alone."""
    begin = Player.begin

    def begin_restored(player: Player) -> None:
        if player.name == victim and player.lives and (player.life is None or not player.life.alive):
            player.platters = MemoryBackend(player.world.clock)
            if player.backup.kept:
                found = put_together(player.backup.kept, "backup", player.seed.secret)
                write_records(player.platters, found, lambda _: None)
                lost.append(len(found.records))
        begin(player)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Player, "begin", begin_restored)
        yield


CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
STRIDE = int(os.environ.get("BACKUP_LOST_STRIDE", "3"))
"""Of the steps of each scenario every so many; 1 tries them all, for half an hour."""


def lose(scenario: str, step: Step, fault: Fault) -> tuple[Outcome, list[int]]:
    lost: list[int] = []
    with losing(step.node, lost):
        return Case(scenario, step, fault).run(), lost


def wrong(scenario: str, *, every: int = 1, first: int = 0) -> dict[str, object]:
    """What is wrong after a loss at these steps of the scenario, of either node, before and after each."""
    trace = Case(scenario).run().trace
    told: dict[str, object] = {}
    restored = 0
    cases = [(step, fault) for step in trace for fault in CRASHES]
    for step, fault in cases[first::every]:
        outcome, lost = lose(scenario, step, fault)
        restored += sum(lost)
        told |= {f"{step}: {fault.value}": outcome.violations} if outcome.violations else {}
    assert restored, "nothing was lost with anything in it"
    return told


@pytest.mark.parametrize("scenario", ["rollover", "close"])
def test_what_is_restored_gets_what_it_is_entitled_to(scenario: str) -> None:
    assert wrong(scenario, every=15, first=3) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [
        "contract_setup",
        "rollover",
        "close",
        "cooperative_spend",
        "expiry",
        "liquidation",
        "force_close_by_taker",
        "force_close_by_maker",
        "reorganised_commit",
    ],
)
def test_whatever_step_it_was_lost_at(scenario: str) -> None:
    assert wrong(scenario, every=STRIDE) == {}
