"""The guards of domain.md, by which a position decides: each with what the code does for it."""

from __future__ import annotations

from node import rollover as rollover_node
from node.position import closing, commands, rolling
from node.position.keeper import AttestationKeeper
from node.rollover import RolloverNode
from protocols import rollover
from protocols.contract import rolling as contract_rolling
from tests.simulation.matrix import Case
from tests.simulation.removal import cut, put, swap
from tests.simulation.rules import rule
from tests.simulation.witnesses import (
    close_refused,
    refused,
    roll_refused,
    test,
)

_ROLL = "Guards of a rollover: "
_CLOSE = "Guards of a close: "
_FORCE = "Guards of a force close: "

GUARDS = (
    rule(
        "rollover: lock confirmed",
        _ROLL + "lock confirmed, not closed.",
        cut(rolling.check_rollable, "if contract is None or"),
        roll_refused("R0 without a lock"),
    ),
    rule(
        "rollover: no commit",
        _ROLL + "no commit of ours ever published, none seen even unconfirmed.",
        cut(rolling.check_rollable, "if position.publishing is not None or"),
        roll_refused("R0 after force close"),
        roll_refused("R0 with the peer's commit seen"),
        roll_refused("R1 with a commit seen"),
    ),
    rule(
        "rollover: not attested",
        _ROLL + "no attested event of this contract in a liquidation region.",
        cut(rolling.check_rollable, "if any(each.index"),
        test("position_rolling", "a_liquidation_that_was_attested_ends_rolling_over"),
    ),
    rule(
        "rollover: not decided meanwhile",
        _ROLL + "no attested event of this contract in a liquidation region, also while the peer takes its time.",
        cut(RolloverNode._check_in_time, "for plan in"),
        test("rollover_node", "an_event_that_comes_while_a_rollover_is_agreed_on"),
    ),
    rule(
        "rollover: no event unattested",
        _ROLL + "no named event past and unattested for less than 10 min.",
        put(rollover_node, "ORACLE_LATE", 0),
        test("rollover_node", "an_event_that_is_past_is_waited_for_ten_minutes"),
    ),
    rule(
        "rollover: time to finish",
        "An attempt is to be finished by 30 min before n's expiry.",
        cut(RolloverNode._check_in_time, "if left < BEFORE_EXPIRY"),
        test("rollover_node", "nothing_is_signed_when_too_little_time_is_left"),
    ),
    rule(
        "rollover: the price ends nobody",
        _ROLL + "the present price outside the new contract's regions.",
        cut(rollover._check_alive, "if side :="),
        test("rollover", "no_contract_begins_that_the_present_price_would_end"),
    ),
    rule(
        "close: open",
        _CLOSE + "not closed.",
        cut(closing.check_closable, "if contract is None or"),
        close_refused("a close without a lock"),
    ),
    rule(
        "close: no commit",
        _CLOSE + "commit neither published nor seen.",
        cut(closing.check_closable, "if position.publishing is not None or"),
        close_refused("a close after force close"),
        close_refused("a close with a commit in a mempool"),
    ),
    rule(
        "close: not attested",
        _CLOSE + "not attested in a region.",
        cut(closing.check_closable, "if any(each.index"),
        close_refused("a close after a liquidation"),
    ),
    rule(
        "close: no rollover unfinished",
        _CLOSE + "no rollover attempt has our commit signature out.",
        cut(closing.check_closable, "if position.rolling"),
        close_refused("a close amid a rollover"),
    ),
    rule(
        "force close: lock confirmed",
        _FORCE + "has a contract, lock confirmed.",
        cut(commands.force_close, "if contract is None or"),
        refused("force close before the lock confirmed"),
        refused("force close of no contract"),
    ),
    rule(
        "force close: not closed",
        _FORCE + "not closed.",
        cut(commands.force_close, "if position.commit is not None or"),
        refused("force close after the commit confirmed"),
    ),
    rule(
        "attested: published",
        "Attested, of an event that this contract names: publish the commit.",
        cut(commands.consequences, "return [CommitPublishing"),
        test("position", "states_of_a_whole_life_to_a_cet"),
        Case("liquidation"),
    ),
    rule(
        "attested: the earliest counts",
        "Outputs are those of the CET that covers the attested price, earliest attested region first.",
        cut(commands.attest, "if known is not None and known.event <= event"),
        test("position", "the_earliest_attested_region_counts"),
    ),
    rule(
        "attested: every event is waited for",
        "Attested: of an event that this contract names.",
        swap(AttestationKeeper.run, "nursery.start_soon(self._wait, positions, announcement, asked)", "pass"),
        test("keeper", "a_contract_settles_at_the_attested_price"),
    ),
    rule(
        "spend: confirmed and not revoked",
        "The cooperative spend of a published commit: one in no block could be revoked, and come back with its spend.",
        cut(closing.check_spendable, "if position.cheated"),
        close_refused("a spend of a revoked commit"),
    ),
    rule(
        "spend: the commit is confirmed",
        "The cooperative spend of a published commit: one in no block could be revoked, and come back with its spend.",
        swap(closing.check_spendable, "or position.commit is None", ""),
        close_refused("a spend of a commit in no block"),
    ),
    rule(
        "spend: one",
        "Earliest attested region first: another spend would be valid, too.",
        cut(closing.sign_spend, "if known.txid != fact.txid"),
        close_refused("another spend"),
    ),
    rule(
        "rollover: from 23 h",
        "A rollover may start from 23 h to 60 min before expiry.",
        cut(contract_rolling.check_start, "if now < expiry"),
        test("rollover", "at_no_other_time"),
    ),
    rule(
        "rollover: until 1 h",
        "A rollover whose old event is past, or less than 60 min away at its start, is refused.",
        cut(contract_rolling.check_start, "if now > expiry"),
        test("rollover", "at_no_other_time"),
    ),
)
