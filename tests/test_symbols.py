"""ETHUSD, the quanto contract, through the code that BTCUSD goes through: domain.md, "ETHUSD"; contract.md, "Numbers".

The properties of every payout curve are those of test_payout.py and test_outcomes.py, whose contracts are of both
symbols.
"""

import hashlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given

from node.regtest.consensus import Chain, check_scripts
from protocols.contract import signing
from protocols.contract.numbers import PRICE_LIMIT
from protocols.contract.oracle import (
    DLC,
    OLIVIA,
    SCHEMES,
    Attestation,
    Scheme,
    opening_scalar,
    parse_attestation,
)
from protocols.contract.outcomes import covering, liquidation_price, liquidation_regions, measure, outcomes
from protocols.contract.payout import Payout
from protocols.contract.rolling import liquidated_at, rolled_terms
from protocols.contract.schedule import check_events, contract_events
from protocols.contract.sighash import TxOut
from protocols.contract.symbols import SYMBOLS
from protocols.contract.terms import Role, Side, Terms
from protocols.contract.transactions import ContractPlan
from protocols.contract_setup import SetupComplete, SignaturesHeld
from protocols.errors import LocalError, RemoteProtocolError
from tests.contracts import WORKED, any_terms
from tests.deals import attestation, deal, opening
from tests.opened import COIN_SCRIPTS, LOCKS, TERMS, Open, World, paid
from tests.settlements import Trader, Two
from tests.setups import (
    ANNOUNCEMENT_SECRET,
    ATTESTATION_SECRET,
    MAKER,
    NOW,
    OFFER,
    TAKER,
    nonces,
    order,
    setup_pair,
)

ETHER = evolve(WORKED, symbol="ETHUSD", quantity=40, price="3000", reference="3000")
"""40 contracts at 3 000, long ×5, short ×1, no fees: a contract is worth 300 000 sat."""
PRICE, TOO_LOW = 3_400, 2_391
ROLES = (Role.TAKER, Role.MAKER)
TRADERS = {Role.MAKER: MAKER, Role.TAKER: TAKER}
ORDER_ID = order().order_id


@pytest.mark.parametrize(
    ("price", "long"),
    [
        (0, 0),
        (2_400, 0),  # P₀ − P₀/5
        (2_401, 4_000),  # 100 sat a dollar and contract
        (3_000, 2_400_000),
        (Fraction("3000.01"), 2_400_040),
        (3_500, 4_400_000),
        (5_999, 14_396_000),
        (6_000, 14_400_000),  # P₀ + P₀/1
        (PRICE_LIMIT - 1, 14_400_000),
    ],
)
def test_the_worked_contract(price: int | Fraction, long: int) -> None:
    assert (ETHER.margin_of(Side.LONG), ETHER.margin_of(Side.SHORT)) == (2_400_000, 12_000_000)
    payout = Payout(ETHER)
    assert payout.long(price) == long
    assert payout.short(price) == 14_400_000 - long


def test_a_price_with_cents() -> None:
    terms = evolve(ETHER, quantity=1, price="2500.75", reference="2500.75", taker_leverage=2, maker_account=150)
    assert (terms.margin_of(Side.LONG), terms.margin_of(Side.SHORT)) == (125_038, 250_075)
    # 125 038 − 150 + 100·(2 600 − 2 500.75)
    assert Payout(terms).long(2_600) == 134_813
    assert Payout(terms).bankrupt == 1_251  # 124 888 sat are lost at 1 251.87
    assert Payout(terms).saturated == 5_003  # and the short's 250 225 at 5 003


def test_who_is_never_liquidated() -> None:
    """A long without leverage has lost everything at 0, which is no region; a short always at twice the price."""
    terms = evolve(ETHER, taker_leverage=1)
    assert (Payout(terms).bankrupt, Payout(terms).saturated) == (0, 6_000)
    assert liquidation_price(terms, Side.LONG) is None
    assert liquidation_price(terms, Side.SHORT) == 6_000
    owed = evolve(terms, maker_account=-1)
    assert Payout(owed).long(0) == 1
    assert Payout(owed).bankrupt is None
    assert next(outcome.long for outcome in outcomes(owed, 1)) > 0
    beyond = evolve(terms, price="600000", reference="600000")
    assert liquidation_price(beyond, Side.SHORT) is None


def test_fees_move_the_bankruptcy() -> None:
    # 6 482 sat are 1.6205 dollars of 40 contracts
    prices = [Payout(evolve(ETHER, maker_account=account)).bankrupt for account in (-6_482, 0, 6_482)]
    assert prices == [2_398, 2_400, 2_401]


def test_a_rollover_pays_funding_on_the_receivers_margin() -> None:
    rolled = rolled_terms(ETHER, rate="0.0005", price="3100.5", hours=4)
    assert rolled.maker_account == 1_000  # 12 000 000 · 0.0005 · 4/24, a quarter of a dollar
    assert (rolled.price, rolled.reference, rolled.pool) == ("3000", "3100.5", ETHER.pool)
    assert [liquidated_at(rolled, Fraction(price)) for price in ("2399.99", "2400", "6007.99", "6008")] == [
        Side.LONG,
        None,
        None,
        Side.SHORT,
    ]


@given(any_terms())
def test_a_region_ends_less_than_one_step_inside_the_bankruptcy(terms: Terms) -> None:
    step, payout = SYMBOLS[terms.symbol].region_step, Payout(terms)
    low, high = (liquidation_price(terms, side) for side in (Side.LONG, Side.SHORT))
    bankrupt = -1 if payout.bankrupt is None else payout.bankrupt
    assert 0 <= bankrupt - (-1 if low is None else low) < step
    assert (PRICE_LIMIT if payout.saturated is None else payout.saturated) <= (high or PRICE_LIMIT)
    if high is not None:
        assert payout.saturated is not None
        assert high - payout.saturated < step
    # there are few of them all the same
    assert len(liquidation_regions(terms)) <= 2 * (20 - (step.bit_length() - 1))


@pytest.mark.parametrize(
    ("price", "leverages", "prices", "cets"),
    [
        ("3000", (5, 1), (2_399, 6_000), (240, 14)),
        ("3000", (10, 10), (2_695, 3_304), (318, 16)),
        ("2500.75", (1, 1), (None, 5_008), (261, 12)),
        ("1500", (3, 3), (999, 2_000), (368, 17)),
    ],
)
def test_sizes(price: str, leverages: tuple[int, int], prices: tuple[int | None, int], cets: tuple[int, int]) -> None:
    long, short = leverages
    terms = evolve(ETHER, price=price, reference=price, taker_leverage=long, maker_leverage=short)
    assert (liquidation_price(terms, Side.LONG), liquidation_price(terms, Side.SHORT)) == prices
    size = measure(terms, 24)
    assert (size.settlement_cets, size.liquidation_cets // 23) == cets
    assert size.wire_bytes < 50_000
    assert size.worst_error <= terms.pool // 200 + 1


def test_the_list_is_the_same_bit_for_bit_everywhere() -> None:
    # both peers generate it; whoever changes this changes the protocol
    terms = evolve(ETHER, maker_account=6_482, price="2987.65", reference="3012.5")
    lines = [
        f"{cet.event} {cet.digits} {cet.low} {cet.high} {cet.long} {cet.timelock(terms)}" for cet in outcomes(terms, 24)
    ]
    assert len(lines) == 584
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == (
        "da2ca95bd262da480bb5e51a941d4d1e5cf3f966c3c26cd874fbb423f1305902"
    )


# --- the oracle's events ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_a_contract_names_events_of_its_own_symbol(scheme: Scheme) -> None:
    ids = {symbol: contract_events(symbol, NOW, scheme) for symbol in SYMBOLS}
    assert not set(ids["BTCUSD"]) & set(ids["ETHUSD"])
    for symbol, other in (("BTCUSD", "ETHUSD"), ("ETHUSD", "BTCUSD")):
        times = check_events(symbol, ids[symbol], scheme, asked_at=NOW, now=NOW)
        assert [scheme.parse_event(each) for each in ids[symbol]] == [(symbol, time) for time in times]
        mixed = (*ids[symbol][:-1], ids[other][-1])
        for wrong, said in ((ids[other], f"are of {other}, allowed is {symbol}"), (mixed, "BTCUSD and ETHUSD")):
            with pytest.raises(RemoteProtocolError, match=said) as refused:
                check_events(symbol, wrong, scheme, asked_at=NOW, now=NOW)
            assert refused.value.code == "bad_events"


# --- both dialogues ---------------------------------------------------------------------------------------------------

ETHER_OFFER = evolve(OFFER, symbol="ETHUSD", price="3000", min_quantity=1, max_quantity=100, lot=1)


EARLY, SETTLED = 0, -1


def attested(plan: ContractPlan, event: int, price: int) -> Attestation:
    named = plan.announcements[event]
    raw = OLIVIA.attest(named.id, nonces(named.id), ATTESTATION_SECRET, ANNOUNCEMENT_SECRET, price)
    found = parse_attestation(raw, named)
    assert found is not None
    return found


def test_an_order_of_ether_becomes_a_contract_that_consensus_enforces() -> None:
    """What each side wrote down makes its CETs and its refund valid, at any price, at any event."""
    placed = order(offer=ETHER_OFFER, quantity=40)
    taker, maker = setup_pair(placed, maker_answers=MAKER.answers(ETHER_OFFER)).run()
    assert taker.error is maker.error is None
    assert taker.result == maker.result
    plan: ContractPlan = taker.result
    assert plan.terms == ETHER_OFFER.terms(40, 5)
    assert (plan.terms.symbol, plan.terms.pool) == ("ETHUSD", 14_400_000)
    # opening fee, and 24 h of funding on the receiving short's margin
    assert plan.terms.maker_account == 500 + 12_000
    assert all("/BETH/" in each.id for each in plan.announcements)
    transactions = signing.transactions_of(plan)
    spent = [transactions.commit_outputs[0]]
    for role, end in ((Role.TAKER, taker), (Role.MAKER, maker)):
        (held,) = [fact for fact in end.facts if isinstance(fact, SignaturesHeld)]
        (complete,) = [fact for fact in end.facts if isinstance(fact, SetupComplete)]
        keys = TRADERS[role].attempt(ORDER_ID).keys
        assert complete.commit_signature
        for event, price in ((SETTLED, 3_400), (SETTLED, 0), (SETTLED, 54_000), (EARLY, 2_399), (EARLY, 6_008)):
            outcome = covering(transactions.outcomes, event % len(plan.announcements), price)
            assert outcome is not None
            opened = opening_scalar(attested(plan, event, price), plan.announcements[event], outcome.digits)
            peer_signature = held.signatures.of(transactions, outcome)
            raw = signing.complete_cet(plan, role, keys.fund, outcome, peer_signature=peer_signature, opening=opened)
            check_scripts(raw, spent)
            exact = Payout(plan.terms).long(price)
            assert abs(outcome.long - exact) <= plan.terms.pool // 20
        check_scripts(signing.complete_refund(plan, role, keys.fund, held.signatures.refund), spent)
    for price in (2_400, 3_000, 6_007):
        assert covering(transactions.outcomes, EARLY, price) is None


def test_a_maker_that_lists_events_of_another_symbol_is_refused() -> None:
    placed = order(offer=ETHER_OFFER, quantity=40)
    confused = evolve(ETHER_OFFER, symbol="BTCUSD")
    taker, _ = setup_pair(placed, maker_answers=MAKER.answers(confused)).run()
    assert isinstance(taker.error, RemoteProtocolError)
    assert taker.error.code == "bad_events"


DEAL = deal(evolve(TERMS, symbol="ETHUSD", quantity=20, price="3000", reference="3000", maker_account=6_482))
"""Of two events."""


def test_both_end_a_contract_of_ether_together() -> None:
    """A close at a price with cents, and the cooperative spend of its commit, by both dialogues."""
    two = Two(*(Trader(role, deal=DEAL, attested=(None, attestation(1, PRICE, symbol="ETHUSD"))) for role in ROLES))
    transactions = signing.transactions_of(DEAL.plan)
    taker, maker = two.close("2987.65").run()
    assert taker.error is maker.error is None
    check_scripts(taker.result, [TxOut(transactions.lock_value, transactions.lock_script)])
    # long: 1 200 000 − 6 482 − 100·20·12.35, and half of what was prepaid for the commit and its spend
    left = DEAL.plan.terms.fee_rate * (166 + 118 + 86 - 68 - 86) + 240
    assert paid(taker.result) == [
        (7_200_000 - 1_168_818 + left // 2, DEAL.plan.maker.payout_script),
        (1_168_818 + left // 2, DEAL.plan.taker.payout_script),
    ]
    two = Two(*(Trader(role, deal=DEAL, attested=two.taker.attested) for role in ROLES))
    taker, maker = two.spend().run()
    assert taker.error is maker.error is None
    check_scripts(taker.result, [transactions.commit_outputs[0]])
    split = {script: value for value, script in paid(taker.result)}
    exact = 1_200_000 - 6_482 + 100 * 20 * (PRICE - 3_000)
    assert abs(split[DEAL.plan.taker.payout_script] - exact) <= DEAL.plan.terms.pool // 50


# --- on a chain -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Chain(Path(tmp_path_factory.mktemp("chain"))) as chain:
        for height in range(1, 13):
            chain.mine(script=COIN_SCRIPTS[Role.MAKER if height % 2 else Role.TAKER])
        chain.mine_many(100)
        yield World(chain)


@pytest.mark.parametrize(("price", "event", "lock"), [(PRICE, 1, LOCKS.settlement), (TOO_LOW, 0, LOCKS.liquidation)])
def test_a_cet_of_ether_pays_when_its_lock_has_run_out(world: World, price: int, event: int, lock: int) -> None:
    opened = world.open(DEAL.plan.terms)
    outcome = opened.outcome(price, event=event)
    raw = opened.cet(Role.TAKER, outcome, opening(outcome, price, symbol="ETHUSD"))
    opened.publish(Role.MAKER)
    for _ in range(lock - 1):
        assert world.refusal(raw) == "bad-txns-nonfinal"
        world.mine()
    world.mine(raw)
    split = opened.transactions.payout.split(outcome.long)
    scripts = {role: opened.deal.plan.party(role).payout_script for role in Role}
    if event:
        assert paid(raw) == [(split[role], scripts[role]) for role in Role]
    else:
        assert paid(raw) == [(7_200_000, scripts[Role.MAKER])]


@pytest.mark.parametrize("scheme", [DLC, OLIVIA], ids=lambda scheme: scheme.name)
def test_every_cet_opens_with_what_the_oracle_says_of_ether_and_not_of_bitcoin(world: World, scheme: Scheme) -> None:
    opened = Open.of(world, deal(DEAL.plan.terms, events=2, scheme=scheme))
    for outcome in opened.transactions.outcomes:
        raw = opened.cet(Role.MAKER, outcome, opening(outcome, scheme=scheme, symbol="ETHUSD"))
        check_scripts(raw, opened.spent)
    with pytest.raises(LocalError, match="taker's signature"):
        opened.cet(Role.MAKER, outcome, opening(outcome, scheme=scheme, symbol="BTCUSD"))
