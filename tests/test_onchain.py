"""Each transaction of a contract, spent under Bitcoin Core's consensus code: contract.md, "Transactions"."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from attrs import evolve
from bitcoin.core import CTransaction
from btclib_secp256k1 import dsa
from btclib_secp256k1 import keys as curve

from node.regtest.consensus import Chain, ScriptRefused, check_scripts
from protocols.contract import adaptor, schnorr, signing
from protocols.contract.funding import PUNISH_BASE_VSIZE
from protocols.contract.keys import check_revocation
from protocols.contract.numbers import ORDER
from protocols.contract.oracle import DLC, OLIVIA, Scheme
from protocols.contract.outcomes import covering
from protocols.contract.scripts import Leaf
from protocols.contract.sighash import TxOut, signature_hash
from protocols.contract.terms import Role
from protocols.contract.transactions import FINAL, ContractTransactions, completed, txid, vsize
from protocols.errors import LocalError, RemoteProtocolError

from .deals import deal, opening, p2tr_of, with_inputs
from .opened import (
    COIN_SCRIPTS,
    COIN_SECRETS,
    FINE,
    LOCKS,
    PRICE,
    TERMS,
    TOO_LOW,
    Open,
    World,
    lock_witnesses,
    paid,
    sign_p2wpkh,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Chain(Path(tmp_path_factory.mktemp("chain"))) as chain:
        for height in range(1, 61):
            chain.mine(script=COIN_SCRIPTS[Role.MAKER if height % 2 else Role.TAKER])
        chain.mine_many(100)
        yield World(chain)


# The lock


def test_the_peers_witnesses_are_judged_as_consensus_judges_them(world: World) -> None:
    made = deal(TERMS, coins=world.coin)
    transactions, witnesses = ContractTransactions(made.plan), lock_witnesses(made)
    spent = transactions.lock_prevouts
    check_scripts(signing.complete_lock(made.plan, witnesses), spent)
    for index, witness in witnesses.items():
        signing.verify_lock_witness(made.plan, index, witness)
        for changed in altered(witness):
            with pytest.raises(RemoteProtocolError, match=f"witness of input {index}") as caught:
                signing.verify_lock_witness(made.plan, index, changed)
            assert caught.value.code == "bad_witness"
            with pytest.raises(ScriptRefused):
                check_scripts(signing.complete_lock(made.plan, witnesses | {index: changed}), spent)


def altered(witness: Sequence[bytes]) -> Iterator[tuple[bytes, ...]]:
    """Witnesses that no rule allows: every item with a bit flipped, cut, missing; items of nothing."""
    for position, item in enumerate(witness):
        for changed in (bytes((item[0] ^ 1,)) + item[1:], item[:20] + bytes((item[20] ^ 4,)) + item[21:], item[:-1]):
            yield (*witness[:position], changed, *witness[position + 1 :])
        yield (*witness[:position], *witness[position + 1 :])
    yield ()
    yield (*witness, b"\x01")


def test_signatures_that_do_not_bind_all_of_the_lock_are_refused(world: World) -> None:
    """Consensus would accept these; but others could change the lock, or it would be larger than it pays for."""
    made = deal(TERMS, coins=world.coin)
    transactions = ContractTransactions(made.plan)
    lock, spent = transactions.lock, transactions.lock_prevouts
    signature, key = sign_p2wpkh(lock, 1, spent[1].value)
    compact = dsa.to_compact(signature[:-1])
    high_s = (ORDER - int.from_bytes(compact[32:], "big")).to_bytes(32, "big")
    lax: list[tuple[int, tuple[bytes, ...]]] = [
        (1, (dsa.to_der(compact[:32] + high_s) + b"\x01", key)),
        *((1, sign_p2wpkh(lock, 1, spent[1].value, hash_type=hash_type)) for hash_type in (2, 3, 0x81)),
    ]
    for hash_type in (1, 2, 3, 0x81):
        message = signature_hash(lock, 0, spent, hash_type=hash_type)
        lax.append((0, (schnorr.sign(COIN_SECRETS[Role.MAKER], message) + bytes((hash_type,)),)))
    for index, witness in lax:
        check_scripts(signing.complete_lock(made.plan, lock_witnesses(made) | {index: witness}), spent)
        with pytest.raises(RemoteProtocolError):
            signing.verify_lock_witness(made.plan, index, witness)


def test_the_lock_can_be_spent_by_both_keys_together(world: World) -> None:
    """The key path, by MuSig2: the key aggregation is final, and a close needs 68 vbytes and its outputs."""
    opened = world.open()
    raw = opened.close()
    assert vsize(CTransaction.deserialize(raw)) == 68 + 43 + 43
    world.mine(raw)


# The commit


@pytest.mark.parametrize("role", Role)
def test_either_side_can_publish_the_commit(world: World, role: Role) -> None:
    opened = world.open()
    transactions = opened.transactions
    raw = opened.publish(role)
    assert txid(CTransaction.deserialize(raw)) == transactions.commit_txid
    assert vsize(CTransaction.deserialize(raw)) == 166
    # whoever sees it learns the publisher's secret, and the publisher learns nothing new
    plan, keys = opened.deal.plan, opened.deal.keys
    seen = signing.recover_publish_secret(plan, role.other, raw, opened.commit_held[role])
    assert seen == keys[role].publish
    assert signing.recover_publish_secret(plan, role, raw, opened.commit_held[role.other]) is None
    with pytest.raises(ValueError, match="not the commit"):
        signing.recover_publish_secret(
            plan, role.other, signing.complete_lock(plan, lock_witnesses(opened.deal)), opened.commit_held[role]
        )


def test_swapped_or_missing_signatures_do_not_spend_the_lock(world: World) -> None:
    opened = world.open()
    commit, leaf = opened.transactions.commit, opened.transactions.lock_output.leaf
    second, first, *_ = CTransaction.deserialize(opened.commit(Role.MAKER)).wit.vtxinwit[0].scriptWitness.stack
    undecrypted = opened.commit_held[Role.MAKER][1:]
    for one, other in ((second, first), (first, b""), (b"", second), (first, first), (first, undecrypted)):
        assert "script-verify" in world.refusal(completed(commit, [leaf.witness(one, other)]))
    world.mine(completed(commit, [leaf.witness(first, second)]))


# What spends the commit


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("price", "event", "lock"), [(PRICE, 1, LOCKS.settlement), (TOO_LOW, 0, LOCKS.liquidation)])
def test_a_cet_pays_when_its_lock_has_run_out(world: World, role: Role, price: int, event: int, lock: int) -> None:
    opened = world.open()
    outcome = opened.outcome(price, event=event)
    raw = opened.cet(role, outcome, opening(outcome, price))
    opened.publish(role.other)
    for _ in range(lock - 1):
        assert world.refusal(raw) == "bad-txns-nonfinal"
        world.mine()
    world.mine(raw)
    split = opened.transactions.payout.split(outcome.long)
    plan = opened.deal.plan
    if event:
        assert abs(outcome.long - opened.transactions.payout.long(price)) <= TERMS.pool // 100
        assert paid(raw) == [(split[each], plan.party(each).payout_script) for each in Role]
    else:
        assert (TERMS.maker_side.value, outcome.long) == ("short", 0)
        assert paid(raw) == [(TERMS.pool, plan.maker.payout_script)]


@pytest.mark.parametrize("role", Role)
def test_the_refund_pays_when_its_lock_has_run_out(world: World, role: Role) -> None:
    opened = world.open()
    raw = opened.refund(role)
    opened.publish(role)
    for _ in range(LOCKS.refund - 1):
        assert world.refusal(raw) == "bad-txns-nonfinal"
        world.mine()
    world.mine(raw)
    plan = opened.deal.plan
    assert paid(raw) == [(TERMS.margin(each) + TERMS.account(each), plan.party(each).payout_script) for each in Role]


@pytest.mark.parametrize("scheme", [DLC, OLIVIA], ids=lambda scheme: scheme.name)
def test_every_cet_opens_with_what_the_oracle_gives_away(world: World, scheme: Scheme) -> None:
    opened = Open.of(world, deal(FINE, events=3, scheme=scheme))
    assert {each.event for each in opened.transactions.outcomes} == {0, 1, 2}
    for outcome in opened.transactions.outcomes:
        raw = opened.cet(Role.MAKER, outcome, opening(outcome, scheme=scheme))
        check_scripts(raw, opened.spent)
        sizes = [43 for _ in opened.transactions.outputs(outcome.long)]
        assert vsize(CTransaction.deserialize(raw)) == 118 + sum(sizes)


@pytest.mark.parametrize("scheme", [DLC, OLIVIA], ids=lambda scheme: scheme.name)
def test_no_other_cet_opens_with_the_attested_price(world: World, scheme: Scheme) -> None:
    """Nor with the scalar of any other prefix of it; the kernel agrees on a sample."""
    opened = Open.of(world, deal(FINE, scheme=scheme))
    transactions, held = opened.transactions, opened.held[Role.MAKER]
    attested = opened.outcome(PRICE)
    digits = f"{PRICE:020b}"
    prefixes = [evolve(attested, digits=digits[:length]) for length in range(1, len(digits) + 1)]
    scalars = [opening(prefix, PRICE, scheme) for prefix in prefixes]
    key = opened.deal.plan.taker.points.fund[1:]
    for outcome in transactions.outcomes:
        signature, message = held.of(transactions, outcome), transactions.cet_hash(outcome)
        opened_by = [each for each in scalars if schnorr.verify(key, message, adaptor.decrypt(signature, each))]
        assert opened_by == ([opening(outcome, PRICE, scheme)] if outcome == attested else [])
    for outcome in transactions.by_event[1][::40]:
        if outcome == attested:
            continue
        with pytest.raises(LocalError, match="taker's signature") as caught:
            opened.cet(Role.MAKER, outcome, opening(attested, PRICE, scheme))
        assert caught.value.code == "bad_signature"
        forged = adaptor.decrypt(held.of(transactions, outcome), opening(attested, PRICE, scheme))
        ours = schnorr.sign(opened.deal.keys[Role.MAKER].fund, transactions.cet_hash(outcome))
        with pytest.raises(ScriptRefused):
            check_scripts(
                completed(transactions.cet(outcome), [transactions.commit_output.leaf.witness(ours, forged)]),
                opened.spent,
            )


def test_a_price_not_in_a_region_liquidates_nobody(world: World) -> None:
    opened = Open.of(world, deal(TERMS))
    assert covering(opened.transactions.outcomes, 0, PRICE) is None
    assert covering(opened.transactions.outcomes, 0, TOO_LOW) is not None


def test_both_can_spend_the_commit_at_once(world: World) -> None:
    opened = world.open()
    opened.publish(Role.TAKER)
    raw = opened.together(PRICE)
    assert vsize(CTransaction.deserialize(raw)) == 118 + 43 + 43
    world.mine(raw)


# Punishment


def revoked(world: World, cheat: Role) -> tuple[Open, bytes]:
    """A contract rolled over, and its first commit published by `cheat` all the same."""
    opened = world.open()
    rolled = deal(evolve(TERMS, maker_account=12_000), attempt=1)
    rolled = evolve(rolled, plan=with_inputs(rolled.plan, opened.deal.plan.maker.inputs, opened.deal.plan.taker.inputs))
    assert ContractTransactions(rolled.plan).lock_txid == opened.transactions.lock_txid
    return opened, opened.publish(cheat)


@pytest.mark.parametrize("cheat", Role)
def test_a_revoked_commit_is_punished_in_the_next_block(world: World, cheat: Role) -> None:
    opened, raw = revoked(world, cheat)
    check_revocation(opened.deal.plan.party(cheat).points.revoke, opened.deal.keys[cheat].revoke)
    with pytest.raises(ValueError, match="fee is"):
        opened.punish(cheat, raw, fee=opened.transactions.commit_value)
    punished = opened.punish(cheat, raw, fee=1_000)
    assert vsize(CTransaction.deserialize(punished)) == PUNISH_BASE_VSIZE + 43
    world.mine(punished)
    assert paid(punished) == [(opened.transactions.commit_value - 1_000, p2tr_of("safe"))]


@pytest.mark.parametrize("cheat", Role)
def test_the_punish_leaf_is_open_to_the_wronged_side_only(world: World, cheat: Role) -> None:
    opened, _ = revoked(world, cheat)
    transactions, keys, wronged = opened.transactions, opened.deal.keys, cheat.other
    tx = transactions.spend(FINAL, [TxOut(transactions.commit_value - 1_000, p2tr_of("theirs"))])
    both = {role: curve.prvkey_tweak_add(keys[role].publish, keys[role].revoke) for role in Role}

    def refused(leaf: Leaf, first: bytes, second: bytes) -> None:
        message = signature_hash(
            tx, 0, [TxOut(transactions.commit_value, transactions.commit_script)], leaf_hash=leaf.hash
        )
        raw = completed(tx, [leaf.witness(schnorr.sign(first, message), schnorr.sign(second, message))])
        assert "script-verify" in world.refusal(raw)

    against_cheat = transactions.commit_output.punish(wronged)
    against_wronged = transactions.commit_output.punish(cheat)
    # the cheat knows all secrets of its own, and not the wronged side's fund key
    refused(against_cheat, keys[cheat].fund, both[cheat])
    # its own punish leaf wants both of the wronged side's secrets: each alone does not do
    for known in (keys[wronged].publish, keys[wronged].revoke, both[cheat]):
        refused(against_wronged, keys[cheat].fund, known)
    # the wronged side cannot punish before the commit is revoked: publish alone, or revoke alone, does not do
    for known in (keys[cheat].publish, keys[cheat].revoke, both[wronged]):
        refused(against_cheat, keys[wronged].fund, known)
    # nor does a leaf open with the other leaf's keys
    refused(transactions.commit_output.leaf, keys[cheat].fund, keys[cheat].fund)


def test_a_contract_of_the_next_attempt_replaces_the_old_one(world: World) -> None:
    opened = world.open()
    rolled = deal(evolve(TERMS, maker_account=12_000), attempt=1)
    plan = with_inputs(rolled.plan, opened.deal.plan.maker.inputs, opened.deal.plan.taker.inputs)
    after = Open.of(world, evolve(rolled, plan=plan))
    after.publish(Role.MAKER)
    assert world.refusal(opened.commit(Role.TAKER)) == "bad-txns-inputs-missingorspent"
    # the old contract's CETs do not fit the new commit
    outcome = opened.outcome(PRICE)
    with pytest.raises(ScriptRefused):
        check_scripts(opened.cet(Role.TAKER, outcome, opening(outcome, PRICE)), after.spent)
