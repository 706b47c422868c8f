"""The money safety rules of design.md, and the guards of domain.md: each with what the code does for it.

A rule's proof is that something turns red without it (`tests.simulation.proofs`). Rules that stand twice are taken out
in both places; where one place alone is seen, each has an entry of its own.
"""

from __future__ import annotations

from attrs import frozen

from node import rollover as rollover_node
from node.chain.broadcast import Broadcaster
from node.position import abandon, closing, commands, deadlines, due, evolve, observing, punishing, rolling, state
from node.position.book import Positions
from node.position.bumping import Bumper
from node.position.deadlines import DeadlineKeeper
from node.position.keeper import AttestationKeeper, ChainKeeper
from node.position.punishing import Punisher
from node.rollover import RolloverNode
from node.setup import SetupNode
from protocols import contract_setup, rollover, settlement
from tests.simulation.faults import DISK, Fault, Step
from tests.simulation.matrix import Case
from tests.simulation.removal import Removal, cut, late, put, swap, together
from tests.simulation.witnesses import (
    close_refused,
    hostile,
    refused,
    roll_refused,
    rollover_lie,
    setup_lie,
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


def _rule(name: str, sentence: str, removed: Removal, *seen_by: Witness) -> Rule:
    return Rule(name, sentence, removed, seen_by)


_ONE = "Before anything leaves, what we need to claim our side is on disk."
_VERIFIED = "A commit signature leaves only after the peer's refund and CET signatures for that commit are verified"
_ON_DISK = "... and on disk."

FIRST = (
    _rule(
        "1 setup: taker verifies",
        _VERIFIED,
        cut(contract_setup.taker, "await Compute(verify_contract"),
        setup_lie("MakerContract-refund signature is bent"),
        setup_lie("MakerContract-last CET signature is bent"),
    ),
    _rule(
        "1 setup: maker verifies",
        _VERIFIED,
        cut(contract_setup.maker, "await Compute(verify_contract"),
        setup_lie("TakerContract-refund signature is bent"),
        setup_lie("TakerContract-last CET signature is bent"),
    ),
    _rule(
        "1 rollover: taker verifies",
        _VERIFIED,
        cut(rollover._agree, "await Compute(verify_contract"),
        rollover_lie("maker RolloverTerms-last CET signature is bent"),
        hostile("maker: wrong CET signatures, and leaves"),
    ),
    _rule(
        "1 rollover: maker verifies",
        _VERIFIED,
        cut(rollover.maker, "await Compute(verify_contract"),
        rollover_lie("taker TakerSignatures-last CET signature is bent"),
        hostile("taker: wrong CET signatures, and leaves"),
    ),
    _rule(
        "1 setup: taker has the commit",
        "What we need to claim: the peer's commit signature, before our lock signatures leave.",
        cut(contract_setup.taker, "await Compute(verify_commit"),
        setup_lie("MakerContract-maker: commit signature is bent"),
        hostile("maker: a wrong commit signature"),
    ),
    _rule(
        "1 setup: maker has the commit",
        "What we need to claim: the peer's commit signature, before our lock signatures leave.",
        cut(contract_setup.maker, "await Compute(verify_commit"),
        setup_lie("TakerLock-taker: commit signature is bent"),
        hostile("taker: a wrong commit signature"),
    ),
    _rule(
        "1 rollover: taker has the commit",
        "What we need to claim: n + 1 is complete before n is revoked.",
        cut(rollover.taker, "await Compute(verify_commit"),
        rollover_lie("maker MakerCommit-maker: commit signature is bent"),
        hostile("maker: a wrong commit signature, and leaves"),
    ),
    _rule(
        "1 rollover: maker has the commit",
        "What we need to claim: n + 1 is complete before n is revoked.",
        cut(rollover.maker, "await Compute(verify_commit"),
        rollover_lie("taker TakerSignatures-taker: commit signature is bent"),
        hostile("taker: a wrong commit signature, and leaves"),
    ),
    _rule(
        "1 setup: maker's signatures on disk",
        _ON_DISK,
        late(contract_setup.maker, "await Persist(SignaturesHeld", "await Send(MakerContract"),
        test("contract_setup", "the_order_of_things"),
        test("contract_setup", "a_crash_at_a_persist_leaves_what_is_needed[Role.MAKER-1-before]"),
    ),
    _rule(
        "1 setup: taker's attempt on disk",
        _ONE,
        late(contract_setup.taker, "await Persist(AttemptBegun", "await Send(\n        TakerContract"),
        test("contract_setup", "the_order_of_things"),
        test("contract_setup", "a_crash_at_a_persist_leaves_what_is_needed[Role.TAKER-0-before]"),
    ),
    _rule(
        "1 setup: maker's attempt on disk",
        _ONE,
        late(contract_setup.maker, "await Persist(AttemptBegun", "await Send(\n        Accepted"),
        test("contract_setup", "the_order_of_things"),
        test("contract_setup", "a_crash_at_a_persist_leaves_what_is_needed[Role.MAKER-0-before]"),
    ),
    _rule(
        "1 setup: taker's contract on disk",
        _ONE,
        late(contract_setup.taker, "await Persist(SetupComplete", "await Send(TakerLock"),
        test("contract_setup", "the_order_of_things"),
        test("contract_setup", "a_crash_at_a_persist_leaves_what_is_needed[Role.TAKER-2-before]"),
    ),
    _rule(
        "1 setup: maker's contract on disk",
        _ONE,
        late(contract_setup.maker, "await Persist(SetupComplete", "await Send(MakerLock"),
        test("contract_setup", "the_order_of_things"),
        Case("contract_setup", Step("maker", DISK, 2), Fault.DISK_FULL),
    ),
    _rule(
        "1 rollover: taker's R0 on disk",
        _ONE,
        late(rollover._agree, "await Persist(RolloverBegun", "await Send(ProposeRollover"),
        test("rollover", "the_order_of_things"),
    ),
    _rule(
        "1 rollover: maker's R0 on disk",
        _ONE,
        cut(rollover._offer, "await Persist(RolloverBegun"),
        test("rollover", "the_expiry_moves_and_the_lock_stays"),
    ),
    _rule(
        "1 rollover: taker's R1 on disk",
        _ON_DISK,
        cut(rollover._agree, "await Persist(held)"),
        test("rollover", "the_expiry_moves_and_the_lock_stays"),
    ),
    _rule(
        "1 rollover: maker's R1 and R2 on disk",
        _ON_DISK,
        late(rollover.maker, "if held is None or progress.complete is None", "await Send(MakerCommit"),
        test("rollover", "the_order_of_things"),
    ),
    _rule(
        "1 rollover: taker's R2 on disk",
        _ONE,
        late(rollover.taker, "if progress.complete is None", "await Send(Revocation"),
        test("rollover", "the_order_of_things"),
    ),
    _rule(
        "1 rollover: taker's R3 on disk",
        "`Revoking(n)` is recorded before our revocation leaves.",
        late(rollover.taker, "if progress.leaves is None", "await Send(Revocation"),
        test("rollover", "the_order_of_things"),
        test("rollover", "the_table_of_cuts[R3 of the taker (5 lost)]"),
    ),
    _rule(
        "1 rollover: maker's R3 and R4 on disk",
        "`Revoking(n)` is recorded before our revocation leaves.",
        late(rollover.maker, "if progress.revocation is None", "await Send(Revocation"),
        test("rollover", "the_order_of_things"),
    ),
    _rule(
        "1 close: taker's on disk",
        "Each partial signature leaves after `Persist` of price and txid.",
        late(settlement.taker_close, "await Persist(CloseSigned", "await Send(TakerPartial"),
        test("settlement", "the_order_of_things"),
    ),
    _rule(
        "1 close: maker's on disk",
        "Each partial signature leaves after `Persist` of price and txid.",
        late(settlement._maker_close, "await Persist(CloseSigned", "await Send(MakerPartial"),
        test("settlement", "the_order_of_things"),
    ),
    _rule(
        "1 spend: taker's on disk",
        _ONE,
        late(settlement.taker_spend, "await Persist(SpendSigned", "await Send(ProposeSpend"),
        test("settlement", "the_order_of_things"),
    ),
    _rule(
        "1 spend: maker's on disk",
        _ONE,
        late(settlement._maker_spend, "await Persist(SpendSigned", "await Send(AcceptSpend"),
        test("settlement", "the_order_of_things"),
    ),
    _rule(
        "1 events are on disk before they are seen",
        "A command decides; its events are appended; only after that do they reach subscribers.",
        swap(
            Positions._execute,
            "new = [CODEC.encode(event) for event in events]",
            "new = [CODEC.encode(event) for event in events]\n        self._take(evolve(position, events[0]), events)",
        ),
        test("book", "a_full_disk_refuses_and_everything_known_stays"),
    ),
)

SECOND = (
    _rule(
        "2 a signed lock is watched",
        "From the moment our lock signatures left, the lock is watched, whatever became of the dialogue.",
        cut(commands.fail_setup, "if position.contract is not None"),
        refused("a failure after our lock signatures left"),
    ),
    _rule(
        "2 it is given up",
        "If it is in no mempool after 10 min, one of our inputs is spent back to ourselves.",
        swap(abandon.LockKeeper._wait, "left <= 0 and not await self._in_a_mempool(position)", "False"),
        hostile("taker: replaces the lock"),
        hostile("maker: publishes the lock too late"),
    ),
    _rule(
        "2 not while a mempool has it",
        "If it is in no mempool after 10 min.",
        swap(abandon.LockKeeper._wait, "left <= 0 and not await self._in_a_mempool(position)", "left <= 0"),
        test("money_rules", "a_lock_that_a_mempool_has_is_not_given_up_however_old"),
    ),
    _rule(
        "2 at once if it is older",
        "At once on start if older.",
        swap(
            abandon.LockKeeper._wait,
            "max(self.clock.now() - position.out_since, trio.current_time() - since)",
            "trio.current_time() - since",
        ),
        test("money_rules", "a_lock_that_is_old_at_the_start_is_given_up_at_once"),
    ),
    _rule(
        "2 nothing of an old price is published",
        "If it is in no mempool after 10 min: then the peer would choose whether it wants the old price.",
        cut(ChainKeeper._too_late, "return self.clock.now() >="),
        test("attacks", "a_maker_that_was_away_publishes_no_lock_of_an_old_price"),
    ),
    _rule(
        "2 twice the rate",
        "Spent back at ≥ 2 × the lock's rate.",
        swap(abandon.spend_back, "least = 2 * contract", "least = contract"),
        test("attacks", "a_peer_with_many_inputs_cannot_make_a_lock_too_dear_to_give_up"),
    ),
    _rule(
        "2 more than the whole fee",
        "Spent back for more than the lock's whole fee.",
        swap(abandon.spend_back, "replaced + size + 1", "0"),
        test("money_rules", "what_spends_a_lock_back_pays_more_than_the_whole_lock"),
    ),
    _rule(
        "2 inputs stay reserved",
        "Inputs stay reserved until that has 6 confirmations.",
        put(observing, "ABANDONED_CONFIRMATIONS", 1),
        test("position", "a_lock_that_is_given_up_frees_the_coins_once_what_was_spent_back_is_deep"),
    ),
    _rule(
        "2 a lock that confirms anyway",
        "A lock that confirms anyway is an open position.",
        swap(observing._observe_lock, "position.lock is None and", "position.lock is position.abandoned is None and"),
        test("position", "a_lock_that_confirms_though_it_was_given_up_is_an_open_position"),
    ),
    _rule(
        "2 it is raised",
        "At ≥ 2 × the lock's rate: left so, mempools that fill would drop it.",
        swap(abandon.LockKeeper._wait, "pays_too_little(position, await self.fee_rate())", "False"),
        test("attacks", "what_spends_a_lock_back_is_raised_when_blocks_ask_for_more"),
    ),
)

_FOR_EVER = "That attempt is n + 1 for ever: resume it with the same bytes, or force close; never another n + 1."
_EXCLUDE = "Publishing n and revoking n exclude each other."

THIRD = (
    _rule(
        "3 setup: fresh points",
        "One attempt, one pair of points.",
        swap(SetupNode.attempt, "self.entropy(32)", "bytes(32)"),
        test("setup_node", "every_attempt_has_a_salt_and_keys_of_its_own"),
    ),
    _rule(
        "3 rollover: fresh points",
        "One attempt, one pair of points.",
        swap(RolloverNode.begin, "self.setup.entropy(32)", "bytes(32)"),
        hostile("maker: drops its terms once"),
    ),
    _rule(
        "3 one set of terms",
        "One pair of points carries one set of terms.",
        cut(rolling.begin_rollover, "if any(each.following and"),
        roll_refused("the same points again"),
    ),
    _rule(
        "3 the terms that were offered",
        "One pair of points carries one set of terms.",
        cut(rolling.hold_rollover, "if begun.following is not None and begun.following != following"),
        roll_refused("R1 of other terms"),
    ),
    _rule(
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
    _rule(
        "3 no other begins",
        _FOR_EVER,
        cut(rolling.begin_rollover, "if position.rolling"),
        roll_refused("R0 while one is unfinished"),
    ),
    _rule(
        "3 the maker finishes the first",
        _FOR_EVER,
        cut(rollover.maker, "if held is not None and held.next.plan.taker.points != theirs"),
        test("rollover", "the_maker_signs_the_first_attempt_only"),
    ),
    _rule(
        "3 the same to the byte",
        _FOR_EVER,
        cut(rollover._compare, "if said != recorded"),
        test("rollover", "a_resumed_attempt_is_the_same_to_the_byte_or_nothing"),
    ),
    _rule(
        "3 a setup is attempted once",
        "One attempt, one pair of points, one set of terms (at setup: our lock signatures).",
        cut(commands.begin_attempt, "if position.attempts or"),
        refused("a second attempt"),
        refused("an attempt after a failure"),
    ),
    _rule(
        "3 one set of signatures",
        "One attempt, one set of terms.",
        cut(commands.hold_signatures, "if attempt.signatures_held or"),
        refused("signatures twice"),
        refused("signatures of another party"),
    ),
    _rule(
        "3 published is not revoked",
        _EXCLUDE,
        cut(rolling.revoke, "if position.publishing is not None and"),
        test("position_rolling", "publishing_and_revoking_exclude_each_other[0-True-Role.MAKER]"),
    ),
    _rule(
        "3 revoked is not published",
        _EXCLUDE,
        swap(commands.force_close, "contract.index", "0"),
        test("position_rolling", "publishing_and_revoking_exclude_each_other[0-True-Role.MAKER]"),
    ),
    _rule(
        "3 attested: revoked is not published",
        _EXCLUDE,
        swap(commands.consequences, "CommitPublishing(attested.index", "CommitPublishing(0"),
        Case("rollover"),
    ),
    _rule(
        "3 by expected version",
        "The two exclude each other for ever (expected version).",
        swap(
            Positions._execute,
            "_stream(order_id), position.version, new",
            "_stream(order_id), len(await self._store.call(EventStore.load, _stream(order_id))), new",
        ),
        test("book", "another_writer_is_noticed_and_decided_upon_anew[memory]"),
    ),
    _rule(
        "3 or force close, in an hour",
        "An attempt that is not finished within 60 min: publish.",
        cut(DeadlineKeeper._overdue, "if max(self.clock.now() - following.held_at"),
        test("deadlines", "a_rollover_that_is_not_finished_in_time_ends_in_a_commit"),
    ),
    _rule(
        "3 or force close, before expiry",
        "... or by 30 min before n's expiry: publish (n, or n + 1 after `Revoking(n)`).",
        cut(DeadlineKeeper._overdue, "if self.clock.calendar() >= expiry"),
        test("deadlines", "an_unfinished_rollover_ends_before_its_old_contract_expires"),
        hostile("maker: silent once it has our commit signature"),
    ),
    _rule(
        "3 no n + 2",
        "No n + 2 before both revocations are held.",
        cut(rollover._check_predecessor, "if not standing.predecessor_revoked"),
        test("rollover", "no_second_rollover_before_both_revoked_the_first"),
    ),
    _rule(
        "3 claims on whichever confirms",
        "It claims on whichever of the two confirms.",
        swap(state.Position.claimable, "self.attempts[len(self.peer_secrets) :]", "self.attempts[-1:]"),
        test("position_rolling", "what_may_be_published_claimed_and_punished_after_each_record[Role.MAKER]"),
    ),
)

_OPTION = "A close signature that left is an option for the peer until the lock is spent: "

FOURTH = (
    _rule(
        "4 no other price, by the record",
        _OPTION + "no other price.",
        cut(closing.sign_close, "if known is not None and (known.price"),
        test("position_closing", "the_same_close_again_is_nothing_new_and_any_other_is_refused[Role.MAKER]"),
    ),
    _rule(
        "4 no other price, the maker",
        _OPTION + "no other price.",
        cut(settlement._maker_close, "if contract.closing is not None and not _identical"),
        test("settlement", "the_maker_signs_no_other_close"),
    ),
    _rule(
        "4 no other price, the taker",
        _OPTION + "no other price.",
        swap(settlement.taker_close, "elif not _identical(close, contract.closing)", "elif False"),
        test("settlement", "the_taker_proposes_no_other_close"),
    ),
    _rule(
        "4 no rollover",
        _OPTION + "no rollover.",
        cut(rolling.check_rollable, "if position.closing"),
        roll_refused("R0 while a close is out"),
        roll_refused("the maker's too"),
    ),
    _rule(
        "4 not in a mempool: the commit",
        "Not in a mempool after 10 min, publish the commit.",
        swap(DeadlineKeeper._unclosed, "view.spender(position.lock.txid, 0) is None", "False"),
        test("deadlines", "a_close_that_reaches_no_mempool_ends_in_a_commit"),
        hostile("maker: keeps the close for an hour"),
    ),
    _rule(
        "4 not while a mempool has it",
        "Not in a mempool after 10 min.",
        swap(DeadlineKeeper._unclosed, "view.spender(position.lock.txid, 0) is None", "True"),
        test("deadlines", "a_close_that_a_mempool_shows_is_left_alone"),
    ),
)

FIFTH = (
    _rule(
        "5 repeated",
        "Every broadcast is repeated until it is confirmed or conflicted.",
        cut(Broadcaster.run, "self._due.update(self._kept)"),
        test("broadcast", "it_is_repeated_without_a_new_block"),
        Case("expiry"),
    ),
    _rule(
        "5 survives restarts",
        "... survives restarts.",
        swap(due.due, "if position.publishing is not None", "if False"),
        test("due", "the_commit_once_somebody_wants_it[Role.MAKER]"),
    ),
    _rule(
        "5 survives reorganisations",
        "... and reorgs.",
        cut(observing._observe_reorganisation, "for placed in"),
        test("position", "a_reorganisation_moves_the_commit_and_with_it_the_time_of_the_cet"),
    ),
    _rule(
        "5 fee-bumped",
        "... and is fee-bumped.",
        swap(Bumper._see_to, "wanted > paid", "False"),
        test("bumping", "a_commit_is_stuck_until_it_is_raised"),
    ),
    _rule(
        "5 kept for bumps",
        "The wallet keeps 20 000 sat per open position for bumps.",
        cut(SetupNode._fund, "if left < kept"),
        test("setup_node", "what_fees_may_need_is_left_in_the_wallet"),
    ),
    _rule(
        "5 kept until it is buried",
        "What was given to the peer is kept until the lock's spend has 100 confirmations.",
        put(observing, "BURIED_CONFIRMATIONS", 4),
        test("position", "a_lock_that_is_given_up_frees_the_coins_once_what_was_spent_back_is_deep"),
    ),
    _rule(
        "5 the peer's commit that vanishes",
        "Every broadcast survives reorgs: what the peer brings back or not is not left to it.",
        swap(observing._observe_spender, "contract is not None and position.publishing is None", "False"),
        test("attacks", "the_peers_commit_that_a_reorganisation_took_is_brought_back_by_us"),
    ),
    _rule(
        "5 signatures are pruned only after R4",
        "n's CET signatures are pruned only after R4.",
        together(
            swap(
                Positions._prune,
                "isinstance(event, RevocationReceived)",
                "isinstance(event, RevocationReceived | RolloverHeld)",
            ),
            swap(
                Positions._prune,
                "signatures_blob(event.index)",
                "signatures_blob(event.index - isinstance(event, RolloverHeld))",
            ),
        ),
        hostile("taker: publishes the old one instead of revoking it"),
    ),
)

SIXTH = (
    _rule(
        "6 punished",
        "A revoked commit on the chain is punished at once.",
        swap(Punisher._look, "position.cheated and", "False and"),
        hostile("taker: publishes what it revoked, at once"),
        test("punishing", "a_revoked_commit_is_punished_by_a_node_that_was_away"),
    ),
    _rule(
        "6 however old",
        "A revoked commit on the chain is punished: every commit, however old, shows in the lock's history.",
        swap(observing._observe_spender, "for each in position.attempts if", "for each in position.attempts[-1:] if"),
        hostile("taker: publishes what it revoked, hours later"),
    ),
    _rule(
        "6 bumped up to its whole value",
        "Bumped up to its whole value as the lock nears.",
        swap(punishing.punish_fee, "min(max(2 * passed - lock, 0), lock)", "0"),
        test("punishing", "what_punishing_pays_at_each_height"),
        test("punishing", "a_punishment_pays_more_with_each_block_until_it_is_confirmed"),
    ),
    _rule(
        "6 published and then revoked",
        "A revoked commit on the chain is punished, also when it was revoked after it was published.",
        swap(state.Position.cheated, "self.commit_seen.index < len(self.peer_secrets)", "False"),
        test("position_rolling", "publishing_and_then_revoking_is_cheating_once_the_revocation_is_here"),
        hostile("taker: publishes and then revokes"),
    ),
    _rule(
        "6 a revocation counts only if it is one",
        "A revocation counts only after r·G = revoke Y was checked.",
        cut(rollover.check_revocation, "if not curve"),
        test("keys", "a_revocation_counts_only_with_the_right_secret"),
        rollover_lie("taker Revocation-a bent secret"),
        hostile("taker: a revocation that is none"),
    ),
)

_RECOVERED = "A restored node does not know what it has revoked: no commit of its positions is published by itself."

SEVENTH = (
    _rule(
        "7 not by the user",
        _RECOVERED,
        cut(commands.force_close, "if position.recovered"),
        test("money_rules", "a_recovered_position_publishes_nothing_by_itself"),
    ),
    _rule(
        "7 not by the oracle",
        _RECOVERED,
        swap(commands.consequences, "or position.recovered", ""),
        test("money_rules", "a_recovered_position_publishes_nothing_by_itself"),
    ),
    _rule(
        "7 not when the peer's vanishes",
        _RECOVERED,
        swap(observing._observe_spender, "and not position.recovered", ""),
        test("position_rolling", "a_commit_that_vanishes_has_none_published_of_a_recovered_position"),
    ),
    _rule(
        "7 not by a deadline",
        _RECOVERED,
        together(
            swap(deadlines._half_done, "or position.recovered", ""), cut(commands.force_close, "if position.recovered")
        ),
        test("deadlines", "nothing_is_published_of_a_recovered_position"),
    ),
    _rule(
        "7 nothing is rolled over",
        _RECOVERED,
        cut(rolling.check_rollable, "if position.recovered"),
        roll_refused("R0 of a recovered position"),
        roll_refused("R1 of a recovered position"),
    ),
    _rule(
        "7 nothing is revoked",
        _RECOVERED,
        cut(rolling.revoke, "if position.recovered"),
        roll_refused("R3 of a recovered position"),
    ),
)

_ROLL = "Guards of a rollover: "
_CLOSE = "Guards of a close: "
_FORCE = "Guards of a force close: "

GUARDS = (
    _rule(
        "rollover: lock confirmed",
        _ROLL + "lock confirmed, not closed.",
        cut(rolling.check_rollable, "if contract is None or"),
        roll_refused("R0 without a lock"),
    ),
    _rule(
        "rollover: no commit",
        _ROLL + "no commit of ours ever published, none seen even unconfirmed.",
        cut(rolling.check_rollable, "if position.publishing is not None or"),
        roll_refused("R0 after force close"),
        roll_refused("R0 with the peer's commit seen"),
        roll_refused("R1 with a commit seen"),
    ),
    _rule(
        "rollover: not attested",
        _ROLL + "no attested event of this contract in a liquidation region.",
        cut(rolling.check_rollable, "if any(each.index"),
        test("position_rolling", "a_liquidation_that_was_attested_ends_rolling_over"),
    ),
    _rule(
        "rollover: not decided meanwhile",
        _ROLL + "no attested event of this contract in a liquidation region, also while the peer takes its time.",
        cut(RolloverNode._check_in_time, "for plan in"),
        test("rollover_node", "an_event_that_comes_while_a_rollover_is_agreed_on"),
    ),
    _rule(
        "rollover: no event unattested",
        _ROLL + "no named event past and unattested for less than 10 min.",
        put(rollover_node, "ORACLE_LATE", 0),
        test("rollover_node", "an_event_that_is_past_is_waited_for_ten_minutes"),
    ),
    _rule(
        "rollover: time to finish",
        "An attempt is to be finished by 30 min before n's expiry.",
        cut(RolloverNode._check_in_time, "if left < BEFORE_EXPIRY"),
        test("rollover_node", "nothing_is_signed_when_too_little_time_is_left"),
    ),
    _rule(
        "rollover: the price ends nobody",
        _ROLL + "the present price outside the new contract's regions.",
        cut(rollover._check_alive, "if side :="),
        test("rollover", "no_contract_begins_that_the_present_price_would_end"),
    ),
    _rule(
        "close: open",
        _CLOSE + "not closed.",
        cut(closing.check_closable, "if contract is None or"),
        close_refused("a close without a lock"),
    ),
    _rule(
        "close: no commit",
        _CLOSE + "commit neither published nor seen.",
        cut(closing.check_closable, "if position.publishing is not None or"),
        close_refused("a close after force close"),
        close_refused("a close with a commit in a mempool"),
    ),
    _rule(
        "close: not attested",
        _CLOSE + "not attested in a region.",
        cut(closing.check_closable, "if any(each.index"),
        close_refused("a close after a liquidation"),
    ),
    _rule(
        "close: no rollover unfinished",
        _CLOSE + "no rollover attempt has our commit signature out.",
        cut(closing.check_closable, "if position.rolling"),
        close_refused("a close amid a rollover"),
    ),
    _rule(
        "force close: lock confirmed",
        _FORCE + "has a contract, lock confirmed.",
        cut(commands.force_close, "if contract is None or"),
        refused("force close before the lock confirmed"),
        refused("force close of no contract"),
    ),
    _rule(
        "force close: not closed",
        _FORCE + "not closed.",
        cut(commands.force_close, "if position.commit is not None or"),
        refused("force close after the commit confirmed"),
    ),
    _rule(
        "attested: published",
        "Attested, of an event that this contract names: publish the commit.",
        cut(commands.consequences, "return [CommitPublishing"),
        test("position", "states_of_a_whole_life_to_a_cet"),
        Case("liquidation"),
    ),
    _rule(
        "attested: the earliest counts",
        "Outputs are those of the CET that covers the attested price, earliest attested region first.",
        cut(commands.attest, "if known is not None and known.event <= event"),
        test("position", "the_earliest_attested_region_counts"),
    ),
    _rule(
        "attested: every event is waited for",
        "Attested: of an event that this contract names.",
        swap(AttestationKeeper.run, "nursery.start_soon(self._wait, positions, announcement, asked)", "pass"),
        test("keeper", "a_contract_settles_at_the_attested_price"),
    ),
    _rule(
        "spend: confirmed and not revoked",
        "The cooperative spend of a published commit: one in no block could be revoked, and come back with its spend.",
        cut(closing.check_spendable, "if position.cheated"),
        close_refused("a spend of a revoked commit"),
    ),
    _rule(
        "spend: the commit is confirmed",
        "The cooperative spend of a published commit: one in no block could be revoked, and come back with its spend.",
        swap(closing.check_spendable, "or position.commit is None", ""),
        close_refused("a spend of a commit in no block"),
    ),
    _rule(
        "spend: one",
        "Earliest attested region first: another spend would be valid, too.",
        cut(closing.sign_spend, "if known.txid != fact.txid"),
        close_refused("another spend"),
    ),
    _rule(
        "rollover: from 23 h",
        "A rollover may start from 23 h to 60 min before expiry.",
        cut(rollover.check_start, "if now < expiry"),
        test("rollover", "at_no_other_time"),
    ),
    _rule(
        "rollover: until 1 h",
        "A rollover whose old event is past, or less than 60 min away at its start, is refused.",
        cut(rollover.check_start, "if now > expiry"),
        test("rollover", "at_no_other_time"),
    ),
)

RULES = {
    "1": FIRST,
    "2": SECOND,
    "3": THIRD,
    "4": FOURTH,
    "5": FIFTH,
    "6": SIXTH,
    "7": SEVENTH,
    "guards": GUARDS,
}
