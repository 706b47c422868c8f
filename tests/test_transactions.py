"""contract.md, "Transactions", "Fees", "Byte level": what the plan's transactions are, to the satoshi and the vbyte."""

import pickle
from collections.abc import Callable
from fractions import Fraction

import pytest
from attrs import evolve
from bitcoin.core import CTransaction
from btclib_secp256k1 import xonly
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.contract import funding, signing
from protocols.contract.funding import (
    BadScript,
    FundingInput,
    Underfunded,
    change_value,
    funding_needed,
    input_weight,
    later_fees,
    output_vsize,
    side_fee,
)
from protocols.contract.numbers import DUST, MAX_MONEY, ORDER
from protocols.contract.outcomes import Outcome
from protocols.contract.payout import Payout
from protocols.contract.scripts import ANCHOR_SCRIPT, NUMS, commit_internal_key, p2tr, two_keys
from protocols.contract.sighash import TxOut
from protocols.contract.terms import Role, Side, Terms, Timelocks
from protocols.contract.transactions import ContractTransactions, completed, txid, vsize
from protocols.errors import LocalError, RemoteProtocolError

from .contracts import WORKED, any_terms
from .deals import ORDER_ID, Deal, deal, digest, opening, p2tr_of, with_inputs

TERMS = evolve(WORKED, maker_account=6_482, fee_rate=3)


def p2wpkh_of(*name: object) -> bytes:
    return b"\x00\x14" + digest(*name)[:20]


@pytest.fixture(scope="module")
def worked() -> Deal:
    return deal(TERMS)


def outputs_of(tx: CTransaction) -> list[TxOut]:
    return [TxOut(each.nValue, bytes(each.scriptPubKey)) for each in tx.vout]


def signed_commit(deal: Deal) -> CTransaction:
    adaptor = signing.sign_commit(deal.plan, Role.TAKER, deal.keys[Role.TAKER].fund)
    return CTransaction.deserialize(signing.complete_commit(deal.plan, Role.MAKER, deal.keys[Role.MAKER], adaptor))


# Shapes


def test_versions_lock_times_sequences_and_parents(worked: Deal) -> None:
    transactions = ContractTransactions(worked.plan)
    liquidation, settlement = transactions.outcomes[0], transactions.outcomes[-1]
    assert (liquidation.settlement, settlement.settlement) == (False, True)
    lock, commit = transactions.lock, transactions.commit
    locks = TERMS.timelocks
    expected = [
        (lock, 2, [(each.txid, each.vout) for each in transactions.lock_inputs], 0xFFFFFFFD),
        (commit, 3, [(txid(lock), 0)], 0xFFFFFFFD),
        (transactions.cet(liquidation), 3, [(txid(commit), 0)], locks.liquidation),
        (transactions.cet(settlement), 3, [(txid(commit), 0)], locks.settlement),
        (transactions.refund, 3, [(txid(commit), 0)], locks.refund),
    ]
    for tx, version, spent, sequence in expected:
        assert (tx.nVersion, tx.nLockTime) == (version, 0)
        assert [(each.prevout.hash, each.prevout.n) for each in tx.vin] == spent
        assert {each.nSequence for each in tx.vin} == {sequence}


def test_the_maker_comes_first_everywhere(worked: Deal) -> None:
    plan, transactions = worked.plan, ContractTransactions(worked.plan)
    assert transactions.lock_inputs == plan.maker.inputs + plan.taker.inputs
    assert [each.script for each in outputs_of(transactions.lock)] == [
        transactions.lock_script,
        plan.maker.change_script,
        plan.taker.change_script,
    ]
    assert [each.script for each in outputs_of(transactions.commit)] == [transactions.commit_script, ANCHOR_SCRIPT]
    assert [each.script for each in outputs_of(transactions.refund)] == [
        plan.maker.payout_script,
        plan.taker.payout_script,
    ]


def test_scripts_are_those_of_the_specification(worked: Deal) -> None:
    plan, transactions = worked.plan, ContractTransactions(worked.plan)
    maker, taker = plan.maker.points, plan.taker.points
    both = b"\x20" + maker.fund[1:] + b"\xad\x20" + taker.fund[1:] + b"\xac"
    assert transactions.lock_output.leaf.script == transactions.commit_output.leaf.script == both
    assert two_keys(maker.fund[1:], taker.fund[1:]) == both
    for role, own, cheat in ((Role.MAKER, maker, Role.TAKER), (Role.TAKER, taker, Role.MAKER)):
        script = transactions.commit_output.punish(role).script
        assert script[:34] == b"\x20" + own.fund[1:] + b"\xad"
        # the second key's secret is the sum of the cheat's two
        keys = worked.keys[cheat]
        total = (int.from_bytes(keys.publish, "big") + int.from_bytes(keys.revoke, "big")) % ORDER
        assert script[34:] == b"\x20" + xonly.from_prvkey(total)[0] + b"\xac"
    assert len(transactions.lock_output.leaf.control) == 33
    assert len(transactions.commit_output.leaf.control) == 65
    assert len(transactions.commit_output.punish(Role.MAKER).control) == 97


def test_the_commits_internal_key_is_new_for_every_attempt_and_contract() -> None:
    keys = {commit_internal_key(contract, index) for contract in (bytes(32), digest("c")) for index in range(3)}
    assert len(keys) == 6
    assert NUMS not in keys


def test_a_rollover_spends_the_same_lock_to_another_commit(worked: Deal) -> None:
    rolled = deal(evolve(TERMS, maker_account=9_000, reference="55000"), attempt=1)
    before, after = ContractTransactions(worked.plan), ContractTransactions(rolled.plan)
    assert before.lock_txid == after.lock_txid
    assert before.commit_script != after.commit_script
    assert before.commit_value == after.commit_value


def test_a_plan_can_be_sent_to_a_worker_and_gives_the_same_bytes(worked: Deal) -> None:
    plan = pickle.loads(pickle.dumps(worked.plan))  # noqa: S301  # our own bytes
    assert plan == worked.plan
    first, second = ContractTransactions(worked.plan), ContractTransactions(plan)
    assert first.refund.serialize() == second.refund.serialize()
    fund = worked.keys[Role.MAKER].fund
    assert signing.sign_contract(plan, Role.MAKER, fund) == signing.sign_contract(worked.plan, Role.MAKER, fund)


# Amounts


@given(any_terms())
def test_every_satoshi_is_accounted_for(terms: Terms) -> None:
    coins = {role: FundingInput(digest("coin", role), 0, MAX_MONEY, p2tr_of("key", role)) for role in Role}
    plan = deal(terms, events=1, coins=lambda role: coins[role]).plan
    transactions = ContractTransactions(plan)
    payouts = Payout(terms).refund()
    rate, pool = terms.fee_rate, terms.pool
    commit_fee, spend_fee = 166 * rate, (118 + 43 + 43) * rate
    assert transactions.lock_value == pool + commit_fee + 240 + spend_fee
    assert [each.value for each in outputs_of(transactions.commit)] == [pool + spend_fee, 240]
    paid = [each.value for each in outputs_of(transactions.refund)]
    assert paid == ([payouts[role] for role in Role] if min(payouts.values()) >= DUST else [pool])
    # what the lock leaves to the miners is exactly both sides' parts of its fee
    fee = sum(each.value for each in transactions.lock_inputs) - sum(
        each.value for each in outputs_of(transactions.lock)
    )
    assert fee == sum(side_fee(rate, [p2tr(bytes(32))], p2tr(bytes(32))) for _ in Role)
    assert (
        sum(funding_needed(role, terms, p2tr(bytes(32)), p2tr(bytes(32))) for role in Role) == transactions.lock_value
    )


@pytest.mark.parametrize(
    ("long", "paid"),
    [
        (0, ["pool"]),
        (DUST - 1, ["pool"]),
        (DUST, ["rest", "long"]),
        (1_000_000, ["rest", "long"]),
        (TERMS.pool - DUST, ["rest", "long"]),
        (TERMS.pool - DUST + 1, ["pool"]),
        (TERMS.pool, ["pool"]),
    ],
)
def test_dust_is_left_out_and_the_other_gets_the_pool(worked: Deal, long: int, paid: list[str]) -> None:
    transactions = ContractTransactions(worked.plan)
    assert TERMS.side(Role.TAKER) is Side.LONG
    amounts = {"pool": TERMS.pool, "long": long, "rest": TERMS.pool - long}
    outputs = transactions.outputs(long)
    assert [each.value for each in outputs] == [amounts[each] for each in paid]
    if paid == ["pool"]:
        assert outputs[0].script == (worked.plan.maker if long < DUST else worked.plan.taker).payout_script


def test_later_fees_are_shared_the_odd_satoshi_is_the_makers() -> None:
    ours, theirs = p2wpkh_of("a"), p2tr_of("b")
    for rate in (2, 3, 7):
        later = 166 * rate + 240 + (118 + 31 + 43) * rate
        assert later_fees(rate, ours, theirs) == later
        terms = evolve(TERMS, fee_rate=rate)
        assert funding_needed(Role.MAKER, terms, ours, theirs) == terms.margin(Role.MAKER) + -(-later // 2)
        assert funding_needed(Role.TAKER, terms, theirs, ours) == terms.margin(Role.TAKER) + later // 2


def test_an_unknown_payout_script_counts_as_the_larger_one() -> None:
    ours = p2tr_of("ours")
    unknown = funding_needed(Role.MAKER, TERMS, ours)
    assert unknown == funding_needed(Role.MAKER, TERMS, ours, p2tr_of("theirs"))
    assert unknown >= funding_needed(Role.MAKER, TERMS, ours, p2wpkh_of("theirs"))


# Change and coin selection's rules


@pytest.mark.parametrize("change_script", [p2wpkh_of("change"), p2tr_of("change")], ids=["p2wpkh", "p2tr"])
def test_change_at_its_edges(change_script: bytes) -> None:
    def change(value: int) -> int:
        return change_value([FundingInput(digest("c"), 0, value, p2tr_of("k"))], 1_000_000, 2, change_script)

    with_change = 1_000_000 + side_fee(2, [p2tr_of("k")], change_script)
    without = 1_000_000 + side_fee(2, [p2tr_of("k")], None)
    assert change(with_change + DUST) == DUST
    assert change(with_change + DUST - 1) == 0
    assert change(without) == 0
    with pytest.raises(Underfunded, match=f"hold {without - 1} sat, {without} sat are needed"):
        change(without - 1)


@given(
    st.integers(2, 500),
    st.lists(st.tuples(st.booleans(), st.integers(1, 10**8)), min_size=1, max_size=20),
    st.integers(0, 10**9),
    st.booleans(),
)
def test_nothing_is_lost_but_the_fee_and_dust(
    rate: int, coins: list[tuple[bool, int]], needed: int, wide: bool
) -> None:
    inputs = [
        FundingInput(digest(n), n, value, p2tr_of(n) if taproot else p2wpkh_of(n))
        for n, (taproot, value) in enumerate(coins)
    ]
    change_script = p2tr_of("change") if wide else p2wpkh_of("change")
    scripts = [each.script for each in inputs]
    have = sum(each.value for each in inputs)
    try:
        change = change_value(inputs, needed, rate, change_script)
    except Underfunded:
        assert have < needed + side_fee(rate, scripts, None)
        return
    paid = have - needed - change
    if change:
        assert change >= DUST
        assert paid == side_fee(rate, scripts, change_script)
    else:
        assert side_fee(rate, scripts, None) <= paid < side_fee(rate, scripts, change_script) + DUST


@pytest.mark.parametrize("script", [b"", b"\x6a", b"\x00\x20" + bytes(32), b"\x52\x20" + bytes(32)])
def test_other_scripts_have_no_size(script: bytes) -> None:
    for measure in (input_weight, output_vsize):
        with pytest.raises(BadScript, match="neither P2WPKH nor P2TR"):
            measure(script)


# Sizes, of transactions as they are broadcast

PAYOUTS: dict[str, Callable[[Role], bytes]] = {
    "both p2wpkh": lambda role: p2wpkh_of("payout", role),
    "maker p2tr": lambda role: p2tr_of("payout", role) if role is Role.MAKER else p2wpkh_of("payout", role),
    "both p2tr": lambda role: p2tr_of("payout", role),
}


@pytest.mark.parametrize("payout", PAYOUTS)
def test_vsizes(payout: str) -> None:
    made = deal(TERMS, payout=PAYOUTS[payout])
    plan, maker, taker = made.plan, made.keys[Role.MAKER], made.keys[Role.TAKER]
    transactions = ContractTransactions(plan)
    both = sum(output_vsize(PAYOUTS[payout](role)) for role in Role)
    assert vsize(signed_commit(made)) == funding.COMMIT_VSIZE == 166

    signatures = signing.sign_contract(plan, Role.TAKER, taker.fund)
    outcome = next(each for each in transactions.by_event[-1] if each.low <= 54_000 <= each.high)
    cet = signing.complete_cet(
        plan,
        Role.MAKER,
        maker.fund,
        outcome,
        peer_signature=signatures.of(transactions, outcome),
        opening=opening(outcome),
    )
    refund = signing.complete_refund(plan, Role.MAKER, maker.fund, signatures.refund)
    for raw in (cet, refund):
        assert vsize(CTransaction.deserialize(raw)) == 118 + both
    assert transactions.commit_value - TERMS.pool == TERMS.fee_rate * (118 + both)


@settings(max_examples=30)
@given(
    st.lists(st.booleans(), min_size=1, max_size=20), st.lists(st.booleans(), min_size=1, max_size=20), st.booleans()
)
def test_the_lock_pays_its_rate(maker: list[bool], taker: list[bool], wide: bool) -> None:
    """With witnesses of the largest size, and no more than a little above the agreed rate."""

    def coins(role: Role, kinds: list[bool]) -> tuple[FundingInput, ...]:
        return tuple(
            FundingInput(digest(role, n), n, 10_000_000, p2tr_of(n) if taproot else p2wpkh_of(n))
            for n, taproot in enumerate(kinds)
        )

    change = (lambda role: p2tr_of("change", role)) if wide else (lambda role: p2wpkh_of("change", role))
    plan = with_inputs(deal(TERMS, change=change).plan, coins(Role.MAKER, maker), coins(Role.TAKER, taker))
    transactions = ContractTransactions(plan)
    witnesses = [(bytes(64),) if taproot else (bytes(72), bytes(33)) for taproot in (*maker, *taker)]
    raw = CTransaction.deserialize(completed(transactions.lock, witnesses))
    fee = sum(each.value for each in transactions.lock_inputs) - sum(each.nValue for each in raw.vout)
    # BIP141 rounds the transaction once, each side rounds its part: a vbyte's fee and a satoshi at most
    assert 0 <= fee - TERMS.fee_rate * Fraction(_weight(raw), 4) <= 2
    assert len(raw.serialize()) < 10_000


def _weight(tx: CTransaction) -> int:
    base = CTransaction(tx.vin, tx.vout, tx.nLockTime, tx.nVersion).serialize()
    return 3 * len(base) + len(tx.serialize())


# Signatures of a contract


def test_signatures_are_refused_by_name(worked: Deal) -> None:
    plan, transactions = worked.plan, ContractTransactions(worked.plan)
    good = signing.sign_contract(plan, Role.TAKER, worked.keys[Role.TAKER].fund)
    signing.verify_contract(plan, Role.TAKER, good)
    swapped = list(good.cets)
    swapped[0], swapped[1] = good.cets[1], good.cets[0]
    number = 5
    changed = bytearray(good.cets[1])
    changed[65 * number + 40] ^= 1
    outcome: Outcome = transactions.by_event[1][number]
    for bad, said in (
        (evolve(good, refund=bytes(64)), "refund signature"),
        (evolve(good, refund=b""), "refund signature"),
        (evolve(good, cets=good.cets[:1]), "of 1 events, not 2"),
        (evolve(good, cets=(*good.cets, b"")), "of 3 events, not 2"),
        (evolve(good, cets=(good.cets[0], good.cets[1][:-1])), "event 1 have"),
        (evolve(good, cets=(good.cets[0] + bytes(65), good.cets[1])), "event 0 have"),
        (evolve(good, cets=tuple(swapped)), "event 0 have"),
        (
            evolve(good, cets=(good.cets[0], bytes(changed))),
            f"event 1's CET for prices {outcome.low} to {outcome.high}",
        ),
    ):
        with pytest.raises(RemoteProtocolError, match=said) as caught:
            signing.verify_contract(plan, Role.TAKER, bad)
        assert caught.value.code == "bad_signature"
    with pytest.raises(RemoteProtocolError):
        signing.verify_contract(plan, Role.MAKER, good)


OTHER_TERMS = {
    "quantity": evolve(TERMS, quantity=3_600),
    "price": evolve(TERMS, price="54001"),
    "account": evolve(TERMS, maker_account=6_483),
    "fee rate": evolve(TERMS, fee_rate=4),
    "timelocks": evolve(TERMS, timelocks=Timelocks(13, 19, 217)),
    "reference": evolve(TERMS, reference="90000"),
}


@pytest.mark.parametrize("field", OTHER_TERMS)
def test_signatures_of_other_terms_are_refused(worked: Deal, field: str) -> None:
    other = evolve(worked.plan, terms=OTHER_TERMS[field])
    signatures = signing.sign_contract(other, Role.TAKER, worked.keys[Role.TAKER].fund)
    with pytest.raises(RemoteProtocolError):
        signing.verify_contract(worked.plan, Role.TAKER, signatures)


def test_a_commit_signature_is_the_receivers_to_complete(worked: Deal) -> None:
    plan, keys = worked.plan, worked.keys
    signature = signing.sign_commit(plan, Role.TAKER, keys[Role.TAKER].fund)
    signing.verify_commit(plan, Role.TAKER, signature)
    assert signature == signing.sign_commit(plan, Role.TAKER, keys[Role.TAKER].fund)
    for signer, bad in ((Role.MAKER, signature), (Role.TAKER, signature[:-1]), (Role.TAKER, bytes(65))):
        with pytest.raises(RemoteProtocolError, match="commit signature") as caught:
            signing.verify_commit(plan, signer, bad)
        assert caught.value.code == "bad_signature"
    # encrypted to our own point instead of the receiver's, it would teach nobody anything
    rolled = deal(TERMS, attempt=1).plan
    with pytest.raises(RemoteProtocolError):
        signing.verify_commit(rolled, Role.TAKER, signature)
    with pytest.raises(LocalError, match="signature"):
        signing.complete_commit(plan, Role.MAKER, evolve(keys[Role.MAKER], publish=keys[Role.MAKER].revoke), signature)


def test_order_id_and_index_change_the_commit_but_never_the_lock(worked: Deal) -> None:
    first = ContractTransactions(worked.plan)
    for changed in (evolve(worked.plan, order_id=ORDER_ID[::-1]), evolve(worked.plan, index=1)):
        second = ContractTransactions(changed)
        assert first.lock_txid == second.lock_txid
        assert first.commit_script != second.commit_script
