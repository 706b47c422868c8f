"""The simulator itself: runs are repeated by their seed, faults strike, and each check sees what it is there for."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest
from attrs import evolve

from node.position.evolve import replay
from protocols.contract.terms import Role
from tests.simulation.checks import (
    CHECKS,
    Found,
    Seat,
    everybody_got_what_is_due,
    force_closes_are_called_for,
    judge,
    money_is_conserved,
    no_coins_are_reserved,
    no_point_is_used_twice,
    nobody_published_what_it_revoked,
    nothing_is_stuck,
)
from tests.simulation.faults import DISK, Fault, Step
from tests.simulation.matrix import NAMES, Case, cases
from tests.simulation.random_runs import random_run
from tests.simulation.run import Outcome, run
from tests.simulation.scenarios import ROLLOVER, SCENARIOS, SETUP

QUICK_SEEDS, SLOW_SEEDS = 2, 20


@cache
def undisturbed(scenario: str) -> Outcome:
    return run(SCENARIOS[scenario])


def left_by(scenario: str) -> Found:
    found = undisturbed(scenario).found
    assert found is not None
    assert judge(found) == []
    return found


def seat(found: Found, name: str = "taker") -> Seat:
    return next(each for each in found.seats if each.name == name)


def with_seat(found: Found, seat: Seat) -> Found:
    return evolve(found, seats=tuple(seat if each.name == seat.name else each for each in found.seats))


# --- runs -------------------------------------------------------------------------------------------------------------


def test_nothing_goes_wrong_where_nothing_strikes() -> None:
    for scenario, ending in {"close": "closed by close", "liquidation": "settled by cet"}.items():
        outcome = undisturbed(scenario)
        assert outcome.violations == ()
        assert outcome.summary == ending


def test_a_seed_is_a_run() -> None:
    first, again, other = run(SCENARIOS["close"], 1), run(SCENARIOS["close"], 1), run(SCENARIOS["close"], 2)
    assert first.digest == again.digest
    assert first.trace == again.trace
    assert first.digest != other.digest


@pytest.mark.slow
def test_a_seed_is_a_run_in_any_process() -> None:
    code = "from tests.simulation.random_runs import random_run; print([random_run(n).digest for n in (0, 1)])"
    told = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": number}
        ).stdout
        for number in ("1", "2")
    }
    assert len(told) == 1


@pytest.mark.parametrize("seed", range(QUICK_SEEDS))
def test_random_runs(seed: int) -> None:
    assert random_run(seed).violations == ()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(QUICK_SEEDS, SLOW_SEEDS))
def test_more_random_runs(seed: int) -> None:
    assert random_run(seed).violations == ()


@pytest.mark.slow
@pytest.mark.parametrize("scenario", NAMES)
def test_the_matrix(scenario: str) -> None:
    wrong = {str(case): violations for case in cases(scenario) if (violations := case.run().violations)}
    assert wrong == {}


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "fault", "ending"),
    [
        # without the taker's signatures there is no lock, without the maker's last message there is
        (Step("taker", SETUP, 2), Fault.CUT_BEFORE, "lock given up / no contract"),
        pytest.param(Step("maker", SETUP, 2), Fault.CUT_BEFORE, "settled by cet", marks=pytest.mark.slow),
        # the maker asks nothing more for somebody who is gone
        (Step("taker", SETUP, 2), Fault.CUT_AFTER, "lock given up / no contract"),
        (Step("taker", SETUP, 0), Fault.DROP, "no contract"),
        pytest.param(Step("taker", SETUP, 1), Fault.DELAY, "settled by cet", marks=pytest.mark.slow),
        (Step("maker", SETUP, 0), Fault.TWICE, "no contract"),
        (Step("maker", DISK, 1), Fault.DISK_FULL, "no contract"),
        # the backup has what the store was to have next
        (Step("maker", DISK, 2), Fault.CRASH_BEFORE, "settled by cet"),
        (Step("maker", DISK, 2), Fault.CRASH_AFTER, "settled by cet"),
    ],
)
def test_faults_strike(step: Step, fault: Fault, ending: str) -> None:
    outcome = Case("contract_setup", step, fault).run()
    assert outcome.struck == ((step, fault),)
    assert outcome.violations == ()
    assert outcome.summary == ending


def test_a_node_that_crashed_knows_what_is_on_its_disk() -> None:
    outcome = Case("rollover", Step("taker", ROLLOVER, 1), Fault.CRASH_AFTER).run()
    assert outcome.violations == ()
    assert outcome.found is not None
    (position,) = seat(outcome.found).positions.values()
    assert len(position.attempts) == 2
    assert position.own_revoked == 1


# --- what the checks see ----------------------------------------------------------------------------------------------


def sees(found: Found, check: object) -> None:
    """This check turns red, and it says so in a sentence."""
    red = {each: each(found) for each in CHECKS}
    assert red[check], f"{check} sees nothing"  # type: ignore[index]  # a check


def test_money_in_nobodys_wallet_is_seen() -> None:
    found = left_by("close")
    wallets = {script: name for script, name in found.wallets.items() if name != "maker"}
    sees(evolve(found, wallets=wallets), money_is_conserved)


def test_a_satoshi_that_is_missing_is_seen() -> None:
    found = left_by("close")
    outpoint = next(each for each in found.unspent if found.unspent[each][1] in found.wallets)
    value, script = found.unspent[outpoint]
    sees(evolve(found, unspent={**found.unspent, outpoint: (value - 1, script)}), money_is_conserved)


@pytest.mark.parametrize("price", [40_000, 80_000])
def test_a_settlement_at_another_price_is_seen(price: int) -> None:
    found = left_by("cooperative_spend")
    attested = {event: frozenset([price]) for event in found.attested}
    sees(evolve(found, attested=attested), everybody_got_what_is_due)


def test_a_close_at_another_price_is_seen() -> None:
    found = left_by("close")
    own = seat(found)
    (order_id, position), *_ = own.positions.items()
    assert position.closing is not None
    cheap = evolve(position, closing=evolve(position.closing, price="90000" if position.side.value == "long" else "20"))
    sees(with_seat(found, evolve(own, positions={order_id: cheap})), everybody_got_what_is_due)


def test_a_lock_that_a_node_knows_nothing_of_is_seen() -> None:
    found = left_by("close")
    own = seat(found)
    (order_id, position), *_ = own.positions.items()
    sees(with_seat(found, evolve(own, positions={order_id: evolve(position, lock=None)})), everybody_got_what_is_due)


def test_a_position_that_does_not_end_is_seen() -> None:
    found = left_by("close")
    own = seat(found)
    (order_id, events), *_ = own.events.items()
    for count in range(1, len(events)):
        before = replay(order_id, [event for event, _ in events[:count]])
        if not before.ended:
            sees(with_seat(found, evolve(own, positions={order_id: before})), nothing_is_stuck)


def test_a_node_that_stays_down_is_seen() -> None:
    found = left_by("close")
    sees(with_seat(found, evolve(seat(found), running=False)), nothing_is_stuck)


def test_a_force_close_that_nobody_asked_for_is_seen() -> None:
    found = left_by("force_close_by_maker")
    sees(evolve(found, force_closed=frozenset()), force_closes_are_called_for)


def test_a_force_close_for_a_price_that_was_never_attested_is_seen() -> None:
    found = left_by("liquidation")
    sees(evolve(found, attested={}), force_closes_are_called_for)


def test_coins_that_stay_reserved_are_seen() -> None:
    found = left_by("close")
    held = frozenset(list(found.unspent)[:1])
    sees(with_seat(found, evolve(seat(found), reserved=held)), no_coins_are_reserved)


def test_points_that_serve_twice_are_seen() -> None:
    found = left_by("close")
    own = seat(found)
    (order_id, events), *_ = own.events.items()
    twice = evolve(own, events={order_id: events, bytes(16): events})
    sees(with_seat(found, twice), no_point_is_used_twice)
    again = evolve(own, events={order_id: events + events})
    sees(with_seat(found, again), no_point_is_used_twice)


@pytest.mark.parametrize("name", ["maker", pytest.param("taker", marks=pytest.mark.slow)])
def test_who_publishes_what_it_revoked_is_seen(name: str) -> None:
    found = left_by("rollover")
    own = seat(found, name)
    (position,) = own.positions.values()
    assert position.role is (Role.MAKER if name == "maker" else Role.TAKER)
    last = max(at for events in own.events.values() for _, at in events)
    told = (*found.broadcasts, (last, name, position.commit_txid(position.attempts[0])))
    sees(evolve(found, broadcasts=told), nobody_published_what_it_revoked)


# --- what the world can do --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_oracle_that_attests_twice_is_noticed_by_both() -> None:
    outcome = undisturbed("attested_twice")
    alarmed = {entry["node"][:5] for entry in outcome.logs if entry["event"] == "the oracle contradicted itself"}
    assert alarmed == {"maker", "taker"}
