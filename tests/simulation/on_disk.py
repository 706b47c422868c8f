"""Money safety rule 1: what the code does so that what we need is on disk, and verified, before anything leaves."""

from __future__ import annotations

from node.position.book import Positions
from protocols import contract_setup, rollover, settlement
from tests.simulation.faults import DISK, Fault, Step
from tests.simulation.matrix import Case
from tests.simulation.removal import cut, late, swap
from tests.simulation.rules import rule
from tests.simulation.witnesses import (
    hostile,
    rollover_lie,
    setup_lie,
    test,
)

_ONE = "Before anything leaves, what we need to claim our side is on disk."
_VERIFIED = "A commit signature leaves only after the peer's refund and CET signatures for that commit are verified"
_ON_DISK = "... and on disk."

FIRST = (
    rule(
        "1 setup: taker verifies",
        _VERIFIED,
        cut(contract_setup.taker, "await Compute(verify_contract"),
        setup_lie("MakerContract-refund signature is bent"),
        setup_lie("MakerContract-last CET signature is bent"),
    ),
    rule(
        "1 setup: maker verifies",
        _VERIFIED,
        cut(contract_setup.maker, "await Compute(verify_contract"),
        setup_lie("TakerContract-refund signature is bent"),
        setup_lie("TakerContract-last CET signature is bent"),
    ),
    rule(
        "1 rollover: taker verifies",
        _VERIFIED,
        cut(rollover._agree, "await Compute(verify_contract"),
        rollover_lie("maker RolloverTerms-last CET signature is bent"),
        hostile("maker: wrong CET signatures, and leaves"),
    ),
    rule(
        "1 rollover: maker verifies",
        _VERIFIED,
        cut(rollover.maker, "await Compute(verify_contract"),
        rollover_lie("taker TakerSignatures-last CET signature is bent"),
        hostile("taker: wrong CET signatures, and leaves"),
    ),
    rule(
        "1 setup: taker has the commit",
        "What we need to claim: the peer's commit signature, before our lock signatures leave.",
        cut(contract_setup.taker, "await Compute(verify_commit"),
        setup_lie("MakerContract-maker: commit signature is bent"),
        hostile("maker: a wrong commit signature"),
    ),
    rule(
        "1 setup: maker has the commit",
        "What we need to claim: the peer's commit signature, before our lock signatures leave.",
        cut(contract_setup.maker, "await Compute(verify_commit"),
        setup_lie("TakerLock-taker: commit signature is bent"),
        hostile("taker: a wrong commit signature"),
    ),
    rule(
        "1 rollover: taker has the commit",
        "What we need to claim: n + 1 is complete before n is revoked.",
        cut(rollover.taker, "await Compute(verify_commit"),
        rollover_lie("maker MakerCommit-maker: commit signature is bent"),
        hostile("maker: a wrong commit signature, and leaves"),
    ),
    rule(
        "1 rollover: maker has the commit",
        "What we need to claim: n + 1 is complete before n is revoked.",
        cut(rollover.maker, "await Compute(verify_commit"),
        rollover_lie("taker TakerSignatures-taker: commit signature is bent"),
        hostile("taker: a wrong commit signature, and leaves"),
    ),
    rule(
        "1 setup: maker's signatures on disk",
        _ON_DISK,
        late(contract_setup.maker, "await Persist(SignaturesHeld", "await Send(MakerContract"),
        test("contract_setup", "the_order_of_things"),
        test("contract_setup", "a_crash_at_a_persist_leaves_what_is_needed[Role.MAKER-1-before]"),
    ),
    rule(
        "1 setup: taker's attempt on disk",
        _ONE,
        late(contract_setup.taker, "await Persist(AttemptBegun", "await Send(\n        TakerContract"),
        test("contract_setup", "the_order_of_things"),
        test("contract_setup", "a_crash_at_a_persist_leaves_what_is_needed[Role.TAKER-0-before]"),
    ),
    rule(
        "1 setup: maker's attempt on disk",
        _ONE,
        late(contract_setup.maker, "await Persist(AttemptBegun", "await Send(\n        Accepted"),
        test("contract_setup", "the_order_of_things"),
        test("contract_setup", "a_crash_at_a_persist_leaves_what_is_needed[Role.MAKER-0-before]"),
    ),
    rule(
        "1 setup: taker's contract on disk",
        _ONE,
        late(contract_setup.taker, "await Persist(SetupComplete", "await Send(TakerLock"),
        test("contract_setup", "the_order_of_things"),
        test("contract_setup", "a_crash_at_a_persist_leaves_what_is_needed[Role.TAKER-2-before]"),
    ),
    rule(
        "1 setup: maker's contract on disk",
        _ONE,
        late(contract_setup.maker, "await Persist(SetupComplete", "await Send(MakerLock"),
        test("contract_setup", "the_order_of_things"),
        Case("contract_setup", Step("maker", DISK, 2), Fault.DISK_FULL),
    ),
    rule(
        "1 rollover: taker's R0 on disk",
        _ONE,
        late(rollover._agree, "await Persist(RolloverBegun", "await Send(ProposeRollover"),
        test("rollover", "the_order_of_things"),
    ),
    rule(
        "1 rollover: maker's R0 on disk",
        _ONE,
        cut(rollover._offer, "await Persist(RolloverBegun"),
        test("rollover", "the_expiry_moves_and_the_lock_stays"),
    ),
    rule(
        "1 rollover: taker's R1 on disk",
        _ON_DISK,
        cut(rollover._agree, "await Persist(held)"),
        test("rollover", "the_expiry_moves_and_the_lock_stays"),
    ),
    rule(
        "1 rollover: maker's R1 and R2 on disk",
        _ON_DISK,
        late(rollover.maker, "if held is None or progress.complete is None", "await Send(MakerCommit"),
        test("rollover", "the_order_of_things"),
    ),
    rule(
        "1 rollover: taker's R2 on disk",
        _ONE,
        late(rollover.taker, "if progress.complete is None", "await Send(Revocation"),
        test("rollover", "the_order_of_things"),
    ),
    rule(
        "1 rollover: taker's R3 on disk",
        "`Revoking(n)` is recorded before our revocation leaves.",
        late(rollover.taker, "if progress.leaves is None", "await Send(Revocation"),
        test("rollover", "the_order_of_things"),
        test("rollover", "the_table_of_cuts[R3 of the taker (5 lost)]"),
    ),
    rule(
        "1 rollover: maker's R3 and R4 on disk",
        "`Revoking(n)` is recorded before our revocation leaves.",
        late(rollover.maker, "if progress.revocation is None", "await Send(Revocation"),
        test("rollover", "the_order_of_things"),
    ),
    rule(
        "1 close: taker's on disk",
        "Each partial signature leaves after `Persist` of price and txid.",
        late(settlement.taker_close, "await Persist(CloseSigned", "await Send(TakerPartial"),
        test("settlement", "the_order_of_things"),
    ),
    rule(
        "1 close: maker's on disk",
        "Each partial signature leaves after `Persist` of price and txid.",
        late(settlement._maker_close, "await Persist(CloseSigned", "await Send(MakerPartial"),
        test("settlement", "the_order_of_things"),
    ),
    rule(
        "1 spend: taker's on disk",
        _ONE,
        late(settlement.taker_spend, "await Persist(SpendSigned", "await Send(ProposeSpend"),
        test("settlement", "the_order_of_things"),
    ),
    rule(
        "1 spend: maker's on disk",
        _ONE,
        late(settlement._maker_spend, "await Persist(SpendSigned", "await Send(AcceptSpend"),
        test("settlement", "the_order_of_things"),
    ),
    rule(
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
