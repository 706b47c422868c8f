"""Each transaction of a contract, spent under Bitcoin Core's consensus code: contract.md, "Transactions"."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from attrs import evolve, field, frozen, mutable
from bitcoin.core import CBlock, CTransaction
from bitcoin.core.script import SIGVERSION_WITNESS_V0, CScript, SignatureHash
from bitcoin.core.serialize import Hash160
from btclib_secp256k1 import dsa, musig
from btclib_secp256k1 import keys as curve

from node.regtest.consensus import BlockRejected, Chain, ScriptRefused, check_scripts
from node.regtest.consensus import TxOut as Spent
from protocols.contract import adaptor, schnorr, signing
from protocols.contract.funding import PUNISH_BASE_VSIZE, FundingInput
from protocols.contract.keys import check_revocation, key_sort
from protocols.contract.numbers import ORDER
from protocols.contract.outcomes import Outcome, covering
from protocols.contract.scripts import Leaf, p2tr, tweak
from protocols.contract.sighash import TxOut, signature_hash
from protocols.contract.terms import Role, Terms, Timelocks
from protocols.contract.transactions import FINAL, ContractTransactions, completed, txid, unsigned, vsize
from protocols.errors import LocalError, RemoteProtocolError

from .contracts import WORKED
from .deals import Deal, deal, digest, opening, p2tr_of, with_inputs, x_only

LOCKS = Timelocks(liquidation=2, settlement=4, refund=6)
FINE = evolve(WORKED, timelocks=LOCKS, maker_account=6_482)
TERMS = evolve(FINE, tolerance_near="0.02", tolerance_far="0.1")
"""Fewer CETs, where each of them is like any other."""
PRICE = 60_000
"""Within the settlement's range; both sides get a payout there."""
TOO_LOW = 30_000
"""The long is liquidated."""

COIN_SECRETS = {role: digest("coin key", role) for role in Role}
TAKER_COIN_KEY = curve.pubkey_from_prvkey(COIN_SECRETS[Role.TAKER])
COIN_SCRIPTS = {
    Role.MAKER: p2tr(x_only(COIN_SECRETS[Role.MAKER])),
    Role.TAKER: b"\x00\x14" + Hash160(TAKER_COIN_KEY),
}


@mutable
class World:
    """A chain with mature coins of both sides: the maker's P2TR, the taker's P2WPKH."""

    chain: Chain
    used: Counter[Role] = field(factory=Counter)

    def coin(self, role: Role) -> FundingInput:
        self.used[role] += 1
        height = 2 * self.used[role] - (1 if role is Role.MAKER else 0)
        coinbase = CBlock.deserialize(self.chain.block(height)).vtx[0]
        assert bytes(coinbase.vout[0].scriptPubKey) == COIN_SCRIPTS[role]
        return FundingInput(coinbase.GetTxid(), 0, coinbase.vout[0].nValue, COIN_SCRIPTS[role])

    def mine(self, *raw: bytes) -> None:
        before = self.chain.height
        self.chain.mine(raw)
        assert self.chain.height == before + 1

    def refusal(self, raw: bytes) -> str:
        """Why the kernel refuses a block with this transaction, in its own words."""
        with pytest.raises(BlockRejected) as caught:
            self.chain.mine([raw])
        return caught.value.reason.partition(",")[0]

    def open(self, terms: Terms = TERMS, *, events: int = 2) -> "Open":
        """A contract with all its signatures exchanged, and its lock in a block."""
        opened = Open.of(self, deal(terms, events=events, coins=self.coin))
        self.mine(signing.complete_lock(opened.deal.plan, lock_witnesses(opened.deal)))
        return opened


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Chain(Path(tmp_path_factory.mktemp("chain"))) as chain:
        for height in range(1, 61):
            chain.mine(script=COIN_SCRIPTS[Role.MAKER if height % 2 else Role.TAKER])
        chain.mine_many(100)
        yield World(chain)


def sign_p2wpkh(tx: CTransaction, index: int, value: int, *, hash_type: int = 1) -> tuple[bytes, bytes]:
    code = CScript(b"\x76\xa9\x14" + Hash160(TAKER_COIN_KEY) + b"\x88\xac")
    message = SignatureHash(code, tx, index, hash_type, amount=value, sigversion=SIGVERSION_WITNESS_V0)
    return dsa.sign(message, COIN_SECRETS[Role.TAKER]) + bytes((hash_type,)), TAKER_COIN_KEY


def lock_witnesses(deal: Deal) -> dict[int, tuple[bytes, ...]]:
    transactions = ContractTransactions(deal.plan)
    lock, spent = transactions.lock, transactions.lock_prevouts
    return {
        0: (schnorr.sign(COIN_SECRETS[Role.MAKER], signature_hash(lock, 0, spent)),),
        1: sign_p2wpkh(lock, 1, spent[1].value),
    }


@frozen
class Open:
    """An open contract: what both sides hold of each other."""

    world: World
    deal: Deal
    transactions: ContractTransactions
    held: dict[Role, signing.Signatures]
    """What each role received."""
    commit_held: dict[Role, bytes]

    @classmethod
    def of(cls, world: World, deal: Deal) -> "Open":
        held, commits = {}, {}
        for role in Role:
            fund = deal.keys[role.other].fund
            held[role] = signing.sign_contract(deal.plan, role.other, fund)
            commits[role] = signing.sign_commit(deal.plan, role.other, fund)
            signing.verify_contract(deal.plan, role.other, held[role])
            signing.verify_commit(deal.plan, role.other, commits[role])
        return cls(world, deal, ContractTransactions(deal.plan), held, commits)

    def commit(self, role: Role) -> bytes:
        return signing.complete_commit(self.deal.plan, role, self.deal.keys[role], self.commit_held[role])

    def publish(self, role: Role) -> bytes:
        """The commit, published by a role, in a block."""
        raw = self.commit(role)
        self.world.mine(raw)
        return raw

    def outcome(self, price: int, *, event: int = -1) -> Outcome:
        found = covering(self.transactions.outcomes, event % len(self.transactions.by_event), price)
        assert found is not None
        return found

    def cet(self, role: Role, outcome: Outcome, scalar: bytes) -> bytes:
        return signing.complete_cet(
            self.deal.plan,
            role,
            self.deal.keys[role].fund,
            outcome,
            peer_signature=self.held[role].of(self.transactions, outcome),
            opening=scalar,
        )

    def refund(self, role: Role) -> bytes:
        return signing.complete_refund(self.deal.plan, role, self.deal.keys[role].fund, self.held[role].refund)

    @property
    def spent(self) -> list[Spent]:
        """The commit output, as the kernel wants it."""
        return [Spent(self.transactions.commit_value, self.transactions.commit_script)]


def paid(raw: bytes) -> list[tuple[int, bytes]]:
    return [(each.nValue, bytes(each.scriptPubKey)) for each in CTransaction.deserialize(raw).vout]


# The lock


def test_the_peers_witnesses_are_judged_as_consensus_judges_them(world: World) -> None:
    made = deal(TERMS, coins=world.coin)
    transactions, witnesses = ContractTransactions(made.plan), lock_witnesses(made)
    spent = [Spent(each.value, each.script) for each in transactions.lock_prevouts]
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
    kernel_spent = [Spent(each.value, each.script) for each in spent]
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
        check_scripts(signing.complete_lock(made.plan, lock_witnesses(made) | {index: witness}), kernel_spent)
        with pytest.raises(RemoteProtocolError):
            signing.verify_lock_witness(made.plan, index, witness)


def test_the_lock_can_be_spent_by_both_keys_together(world: World) -> None:
    """The key path, by MuSig2: the key aggregation is final, and a close needs 68 vbytes and its outputs."""
    opened = world.open()
    plan, transactions = opened.deal.plan, opened.transactions
    outputs = [TxOut(TERMS.pool // 2, p2tr_of("payout", role)) for role in Role]
    close = unsigned(3, [(transactions.lock_txid, 0, FINAL)], outputs)
    message = signature_hash(close, 0, [TxOut(transactions.lock_value, transactions.lock_script)])
    keys = musig.KeyAggCache(key_sort(plan.party(role).points.fund for role in Role))
    keys.pubkey_xonly_tweak_add(tweak(transactions.lock_output.internal_key, transactions.lock_output.leaf.hash))
    nonces = {role: musig.nonce_gen(plan.party(role).points.fund, msg32=message) for role in Role}
    session = musig.Session(musig.nonce_agg([each.pubnonce for each in nonces.values()]), message, keys)
    partial = [nonces[role].partial_sign(opened.deal.keys[role].fund, keys, session) for role in Role]
    raw = completed(close, [[session.partial_sig_agg(partial)]])
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


def test_every_cet_opens_with_what_the_oracle_gives_away(world: World) -> None:
    opened = Open.of(world, deal(FINE, events=3))
    assert {each.event for each in opened.transactions.outcomes} == {0, 1, 2}
    for outcome in opened.transactions.outcomes:
        raw = opened.cet(Role.MAKER, outcome, opening(outcome))
        check_scripts(raw, opened.spent)
        sizes = [43 for _ in opened.transactions.outputs(outcome.long)]
        assert vsize(CTransaction.deserialize(raw)) == 118 + sum(sizes)


def test_no_other_cet_opens_with_the_attested_price(world: World) -> None:
    """Nor with the scalar of any other prefix of it; the kernel agrees on a sample."""
    opened = Open.of(world, deal(FINE))
    transactions, held = opened.transactions, opened.held[Role.MAKER]
    attested = opened.outcome(PRICE)
    digits = f"{PRICE:020b}"
    scalars = [opening(evolve(attested, digits=digits[:length]), PRICE) for length in range(1, len(digits) + 1)]
    key = opened.deal.plan.taker.points.fund[1:]
    for outcome in transactions.outcomes:
        signature, message = held.of(transactions, outcome), transactions.cet_hash(outcome)
        opened_by = [each for each in scalars if schnorr.verify(key, message, adaptor.decrypt(signature, each))]
        assert opened_by == ([opening(outcome, PRICE)] if outcome == attested else [])
    for outcome in transactions.by_event[1][::40]:
        if outcome == attested:
            continue
        with pytest.raises(LocalError, match="taker's signature") as caught:
            opened.cet(Role.MAKER, outcome, opening(attested, PRICE))
        assert caught.value.code == "bad_signature"
        forged = adaptor.decrypt(held.of(transactions, outcome), opening(attested, PRICE))
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
    """The cooperative spend: the outputs of the attested price's CET, without its lock."""
    opened = world.open()
    opened.publish(Role.TAKER)
    transactions, keys = opened.transactions, opened.deal.keys
    outputs = transactions.outputs(opened.outcome(PRICE).long)
    spend = transactions.spend(FINAL, outputs)
    leaf = transactions.commit_output.leaf
    spent = [TxOut(transactions.commit_value, transactions.commit_script)]
    message = signature_hash(spend, 0, spent, leaf_hash=leaf.hash)
    raw = completed(spend, [leaf.witness(*(schnorr.sign(keys[role].fund, message) for role in Role))])
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
    plan, keys, wronged = opened.deal.plan, opened.deal.keys, cheat.other
    publish = signing.recover_publish_secret(plan, wronged, raw, opened.commit_held[cheat])
    assert publish is not None
    revoke = keys[cheat].revoke
    check_revocation(plan.party(cheat).points.revoke, revoke)

    def punish(fee: int) -> bytes:
        return signing.punish(
            plan,
            wronged,
            keys[wronged].fund,
            publish_secret=publish,
            revoke_secret=revoke,
            script=p2tr_of("safe"),
            fee=fee,
        )

    with pytest.raises(ValueError, match="fee is"):
        punish(opened.transactions.commit_value)
    punished = punish(1_000)
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
