"""The money safety rules of design.md from the second on: each with what the code does for it.

A rule's proof is that something turns red without it (`tests.simulation.proofs`). Rules that stand twice are taken out
in both places; where one place alone is seen, each has an entry of its own.
"""

from __future__ import annotations

from attrs import frozen

from node.chain.broadcast import Broadcaster
from node.position import abandon, closing, commands, deadlines, due, evolve, observing, punishing, rolling, state
from node.position.book import Positions
from node.position.bumping import Bumper
from node.position.deadlines import DeadlineKeeper
from node.position.keeper import ChainKeeper
from node.position.punishing import Punisher
from node.rollover import RolloverNode
from node.setup import SetupNode
from protocols import rollover, settlement
from protocols.contract import keys
from tests.simulation.matrix import Case
from tests.simulation.removal import Removal, cut, put, swap, together
from tests.simulation.witnesses import (
    hostile,
    refused,
    roll_refused,
    rollover_lie,
    test,
)

Witness = str | Case
"""What turns red: a test by its id, below tests/, or a cell of the simulator's matrix."""


@frozen
class Rule:
    name: str
    sentence: str
    """As the specification says it, or the part of it that this is about."""
    removed: Removal
    seen_by: tuple[Witness, ...]
    """Each of them turns red."""


def rule(name: str, sentence: str, removed: Removal, *seen_by: Witness) -> Rule:
    return Rule(name, sentence, removed, seen_by)


SECOND = (
    rule(
        "2 a signed lock is watched",
        "From the moment our lock signatures left, the lock is watched, whatever became of the dialogue.",
        cut(commands.fail_setup, "if position.contract is not None"),
        refused("a failure after our lock signatures left"),
    ),
    rule(
        "2 it is given up",
        "If it is in no mempool after 10 min, one of our inputs is spent back to ourselves.",
        swap(abandon.LockKeeper._wait, "left <= 0 and not await self._in_a_mempool(position)", "False"),
        hostile("taker: replaces the lock"),
        hostile("maker: publishes the lock too late"),
    ),
    rule(
        "2 not while a mempool has it",
        "If it is in no mempool after 10 min.",
        swap(abandon.LockKeeper._wait, "left <= 0 and not await self._in_a_mempool(position)", "left <= 0"),
        test("money_rules", "a_lock_that_a_mempool_has_is_not_given_up_however_old"),
    ),
    rule(
        "2 at once if it is older",
        "At once on start if older.",
        swap(
            abandon.LockKeeper._wait,
            "max(self.clock.now() - position.out_since, trio.current_time() - since)",
            "trio.current_time() - since",
        ),
        test("money_rules", "a_lock_that_is_old_at_the_start_is_given_up_at_once"),
    ),
    rule(
        "2 nothing of an old price is published",
        "If it is in no mempool after 10 min: then the peer would choose whether it wants the old price.",
        cut(ChainKeeper._too_late, "return self.clock.now() >="),
        test("attacks", "a_maker_that_was_away_publishes_no_lock_of_an_old_price"),
    ),
    rule(
        "2 twice the rate",
        "Spent back at ≥ 2 × the lock's rate.",
        swap(abandon.spend_back, "least = 2 * contract", "least = contract"),
        test("attacks", "a_peer_with_many_inputs_cannot_make_a_lock_too_dear_to_give_up"),
    ),
    rule(
        "2 more than the whole fee",
        "Spent back for more than the lock's whole fee.",
        swap(abandon.spend_back, "replaced + size + 1", "0"),
        test("money_rules", "what_spends_a_lock_back_pays_more_than_the_whole_lock"),
    ),
    rule(
        "2 inputs stay reserved",
        "Inputs stay reserved until that has 6 confirmations.",
        put(observing, "ABANDONED_CONFIRMATIONS", 1),
        test("position", "a_lock_that_is_given_up_frees_the_coins_once_what_was_spent_back_is_deep"),
    ),
    rule(
        "2 a lock that confirms anyway",
        "A lock that confirms anyway is an open position.",
        swap(observing._observe_lock, "position.lock is None and", "position.lock is position.abandoned is None and"),
        test("position", "a_lock_that_confirms_though_it_was_given_up_is_an_open_position"),
    ),
    rule(
        "2 it is raised",
        "At ≥ 2 × the lock's rate: left so, mempools that fill would drop it.",
        swap(abandon.LockKeeper._wait, "pays_too_little(position, await self.fee_rate())", "False"),
        test("attacks", "what_spends_a_lock_back_is_raised_when_blocks_ask_for_more"),
    ),
)

_FOR_EVER = "That attempt is n + 1 for ever: resume it with the same bytes, or force close; never another n + 1."
_EXCLUDE = "Publishing n and revoking n exclude each other."

THIRD = (
    rule(
        "3 setup: fresh points",
        "One attempt, one pair of points.",
        swap(SetupNode.attempt, "self.entropy(32)", "bytes(32)"),
        test("setup_node", "every_attempt_has_a_salt_and_keys_of_its_own"),
    ),
    rule(
        "3 rollover: fresh points",
        "One attempt, one pair of points.",
        swap(RolloverNode.begin, "self.setup.entropy(32)", "bytes(32)"),
        hostile("maker: drops its terms once"),
    ),
    rule(
        "3 one set of terms",
        "One pair of points carries one set of terms.",
        cut(rolling.begin_rollover, "if any(each.following and"),
        roll_refused("the same points again"),
    ),
    rule(
        "3 the terms that were offered",
        "One pair of points carries one set of terms.",
        cut(rolling.hold_rollover, "if begun.following is not None and begun.following != following"),
        roll_refused("R1 of other terms"),
    ),
    rule(
        "3 one attempt is signed",
        _FOR_EVER,
        together(
            swap(rolling.hold_rollover, "or position.rolling", ""),
            swap(
                evolve._rolled,
                "attempts=(*position.attempts, attempt), begun=()",
                "attempts=(*position.attempts, attempt)",
            ),
        ),
        roll_refused("R1 twice"),
    ),
    rule(
        "3 no other begins",
        _FOR_EVER,
        cut(rolling.begin_rollover, "if position.rolling"),
        roll_refused("R0 while one is unfinished"),
    ),
    rule(
        "3 the maker finishes the first",
        _FOR_EVER,
        cut(rollover.maker, "if held is not None and held.next.plan.taker.points != theirs"),
        test("rollover", "the_maker_signs_the_first_attempt_only"),
    ),
    rule(
        "3 the same to the byte",
        _FOR_EVER,
        cut(rollover._compare, "if said != recorded"),
        test("rollover", "a_resumed_attempt_is_the_same_to_the_byte_or_nothing"),
    ),
    rule(
        "3 a setup is attempted once",
        "One attempt, one pair of points, one set of terms (at setup: our lock signatures).",
        cut(commands.begin_attempt, "if position.attempts or"),
        refused("a second attempt"),
        refused("an attempt after a failure"),
    ),
    rule(
        "3 one set of signatures",
        "One attempt, one set of terms.",
        cut(commands.hold_signatures, "if attempt.signatures_held or"),
        refused("signatures twice"),
        refused("signatures of another party"),
    ),
    rule(
        "3 published is not revoked",
        _EXCLUDE,
        cut(rolling.revoke, "if position.publishing is not None and"),
        test("position_rolling", "publishing_and_revoking_exclude_each_other[0-True-Role.MAKER]"),
    ),
    rule(
        "3 revoked is not published",
        _EXCLUDE,
        swap(commands.force_close, "contract.index", "0"),
        test("position_rolling", "publishing_and_revoking_exclude_each_other[0-True-Role.MAKER]"),
    ),
    rule(
        "3 attested: revoked is not published",
        _EXCLUDE,
        swap(commands.consequences, "CommitPublishing(attested.index", "CommitPublishing(0"),
        Case("rollover"),
    ),
    rule(
        "3 by expected version",
        "The two exclude each other for ever (expected version).",
        swap(
            Positions._execute,
            "stream_of(order_id), position.version, new",
            "stream_of(order_id), len(await self._store.call(EventStore.load, stream_of(order_id))), new",
        ),
        test("book", "another_writer_is_noticed_and_decided_upon_anew[memory]"),
    ),
    rule(
        "3 or force close, in an hour",
        "An attempt that is not finished within 60 min: publish.",
        cut(DeadlineKeeper._overdue, "if max(self.clock.now() - following.held_at"),
        test("deadlines", "a_rollover_that_is_not_finished_in_time_ends_in_a_commit[Role.TAKER]"),
    ),
    rule(
        "3 or force close, before expiry",
        "... or by 30 min before n's expiry: publish (n, or n + 1 after `Revoking(n)`).",
        cut(DeadlineKeeper._overdue, "if self.clock.calendar() >= expiry"),
        test("deadlines", "an_unfinished_rollover_ends_before_its_old_contract_expires"),
    ),
    rule(
        "3 no n + 2",
        "No n + 2 before both revocations are held.",
        cut(rollover._check_predecessor, "if not standing.predecessor_revoked"),
        test("rollover", "no_second_rollover_before_both_revoked_the_first"),
    ),
    rule(
        "3 claims on whichever confirms",
        "It claims on whichever of the two confirms.",
        swap(state.Position.claimable, "self.attempts[len(self.peer_secrets) :]", "self.attempts[-1:]"),
        test("position_rolling", "what_may_be_published_claimed_and_punished_after_each_record[Role.MAKER]"),
    ),
)

_OPTION = "A close signature that left is an option for the peer until the lock is spent: "

FOURTH = (
    rule(
        "4 no other price, by the record",
        _OPTION + "no other price.",
        cut(closing.sign_close, "if known is not None and (known.price"),
        test("position_closing", "the_same_close_again_is_nothing_new_and_any_other_is_refused[Role.MAKER]"),
    ),
    rule(
        "4 no other price, the maker",
        _OPTION + "no other price.",
        cut(settlement._maker_close, "if contract.closing is not None and not _identical"),
        test("settlement", "the_maker_signs_no_other_close"),
    ),
    rule(
        "4 no other price, the taker",
        _OPTION + "no other price.",
        swap(settlement.taker_close, "elif not _identical(close, contract.closing)", "elif False"),
        test("settlement", "the_taker_proposes_no_other_close"),
    ),
    rule(
        "4 no rollover",
        _OPTION + "no rollover.",
        cut(rolling.check_rollable, "if position.closing"),
        roll_refused("R0 while a close is out"),
        roll_refused("the maker's too"),
    ),
    rule(
        "4 not in a mempool: the commit",
        "Not in a mempool after 10 min, publish the commit.",
        swap(DeadlineKeeper._unclosed, "lock_spender(position, view) is None", "False"),
        test("deadlines", "a_close_that_reaches_no_mempool_ends_in_a_commit[Role.TAKER]"),
        hostile("maker: keeps the close for an hour"),
    ),
    rule(
        "4 not while a mempool has it",
        "Not in a mempool after 10 min.",
        swap(DeadlineKeeper._unclosed, "lock_spender(position, view) is None", "True"),
        test("deadlines", "a_close_that_a_mempool_shows_is_left_alone"),
    ),
)

FIFTH = (
    rule(
        "5 repeated",
        "Every broadcast is repeated until it is confirmed or conflicted.",
        cut(Broadcaster.run, "self._due.update(self._kept)"),
        test("broadcast", "it_is_repeated_without_a_new_block"),
    ),
    rule(
        "5 survives restarts",
        "... survives restarts.",
        swap(due.due, "if position.publishing is not None", "if False"),
        test("due", "the_commit_once_somebody_wants_it[Role.MAKER]"),
    ),
    rule(
        "5 survives reorganisations",
        "... and reorgs.",
        cut(observing._observe_reorganisation, "for placed in"),
        test("position", "a_reorganisation_moves_the_commit_and_with_it_the_time_of_the_cet"),
    ),
    rule(
        "5 fee-bumped",
        "... and is fee-bumped.",
        swap(Bumper._see_to, "wanted > paid", "False"),
        test("bumping", "a_commit_is_stuck_until_it_is_raised"),
    ),
    rule(
        "5 kept for bumps",
        "The wallet keeps 20 000 sat per open position for bumps.",
        cut(SetupNode._choose_coins, "if left < kept"),
        test("setup_node", "what_fees_may_need_is_left_in_the_wallet"),
    ),
    rule(
        "5 kept until it is buried",
        "What was given to the peer is kept until the lock's spend has 100 confirmations.",
        put(observing, "BURIED_CONFIRMATIONS", 4),
        test("position", "a_lock_that_is_given_up_frees_the_coins_once_what_was_spent_back_is_deep"),
    ),
    rule(
        "5 the peer's commit that vanishes",
        "Every broadcast survives reorgs: what the peer brings back or not is not left to it.",
        swap(observing._observe_spender, "contract is not None and position.publishing is None", "False"),
        test("attacks", "the_peers_commit_that_a_reorganisation_took_is_brought_back_by_us"),
    ),
    rule(
        "5 signatures are pruned only after R4",
        "n's CET signatures are pruned only after R4.",
        swap(
            Positions._prune,
            "indices: set[int] = set()",
            "indices = {each.index - 1 for each in events if type(each).__name__ == 'RolloverHeld'}",
        ),
        hostile("taker: publishes the old one instead of revoking it"),
    ),
)

SIXTH = (
    rule(
        "6 punished",
        "A revoked commit on the chain is punished at once.",
        swap(Punisher._look, "position.cheated and", "False and"),
        hostile("taker: publishes what it revoked, at once"),
    ),
    rule(
        "6 however old",
        "A revoked commit on the chain is punished: every commit, however old, shows in the lock's history.",
        swap(observing._observe_spender, "for each in position.attempts if", "for each in position.attempts[-1:] if"),
        hostile("taker: publishes what it revoked, hours later"),
    ),
    rule(
        "6 bumped up to its whole value",
        "Bumped up to its whole value as the lock nears.",
        swap(punishing.punish_fee, "min(max(2 * passed - lock, 0), lock)", "0"),
        test("punishing", "what_punishing_pays_at_each_height"),
        test("punishing", "a_punishment_pays_more_with_each_block_until_it_is_confirmed"),
    ),
    rule(
        "6 published and then revoked",
        "A revoked commit on the chain is punished, also when it was revoked after it was published.",
        swap(state.Position.cheated, "self.commit_seen.index < len(self.peer_secrets)", "False"),
        test("position_rolling", "publishing_and_then_revoking_is_cheating_once_the_revocation_is_here"),
        hostile("taker: publishes and then revokes"),
    ),
    rule(
        "6 a revocation counts only if it is one",
        "A revocation counts only after r·G = revoke Y was checked.",
        cut(keys.check_revocation, "if not curve"),
        test("keys", "a_revocation_counts_only_with_the_right_secret"),
        rollover_lie("taker Revocation-a bent secret"),
        hostile("taker: a revocation that is none, and publishes"),
    ),
)

_RECOVERED = "A restored node does not know what it has revoked: no commit of its positions is published by itself."

SEVENTH = (
    rule(
        "7 not by the user",
        _RECOVERED,
        cut(commands.force_close, "if position.recovered"),
        test("money_rules", "a_recovered_position_publishes_nothing_by_itself"),
    ),
    rule(
        "7 not by the oracle",
        _RECOVERED,
        swap(commands.consequences, "or position.recovered", ""),
        test("money_rules", "a_recovered_position_publishes_nothing_by_itself"),
    ),
    rule(
        "7 not when the peer's vanishes",
        _RECOVERED,
        swap(observing._observe_spender, "and not position.recovered", ""),
        test("position_rolling", "a_commit_that_vanishes_has_none_published_of_a_recovered_position"),
    ),
    rule(
        "7 not by a deadline",
        _RECOVERED,
        together(
            swap(deadlines._half_done, "or position.recovered", ""), cut(commands.force_close, "if position.recovered")
        ),
        test("deadlines", "nothing_is_published_of_a_recovered_position"),
    ),
    rule(
        "7 nothing is rolled over",
        _RECOVERED,
        cut(rolling.check_rollable, "if position.recovered"),
        roll_refused("R0 of a recovered position"),
        roll_refused("R1 of a recovered position"),
    ),
    rule(
        "7 nothing is revoked",
        _RECOVERED,
        cut(rolling.revoke, "if position.recovered"),
        roll_refused("R3 of a recovered position"),
    ),
)

RULES = {
    "2": SECOND,
    "3": THIRD,
    "4": FOURTH,
    "5": FIFTH,
    "6": SIXTH,
    "7": SEVENTH,
}
