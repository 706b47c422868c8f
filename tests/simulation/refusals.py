"""The refusals of contract.md, and those of domain.md about what the other side says: each to be taken out."""

from __future__ import annotations

import node.oracle.client
import node.oracle.contradictions
import node.prices
import node.taker
from node.chain import inputs as chain_inputs
from node.chain.monitor import Monitor
from node.oracle.client import OracleClient
from node.position import observing
from node.position import rolling as position_rolling
from node.position.commands import place_order
from node.rollover import RolloverNode
from node.settlement import SettlementNode
from node.setup import SetupNode
from protocols import contract_setup, rollover, settlement
from protocols.contract import (
    adaptor,
    announcements,
    bump,
    closing,
    funding,
    keys,
    numbers,
    oracle,
    outcomes,
    parties,
    rolling,
    schedule,
    signing,
    terms,
    transactions,
    witness,
)
from protocols.contract.adaptor import Verifier
from protocols.contract.closing import CloseNonce, CloseSession, Spend
from protocols.contract.dlc import Dlc
from protocols.contract.olivia import Olivia
from protocols.contract.terms import Terms
from protocols.offers import Offer
from tests.simulation.removal import cut, put, swap
from tests.simulation.rules import Rule, _rule

_POINTS = "Refuse: "
_INPUTS = "Inputs from the peer: "
_SCRIPTS = "Payout and change scripts: "
_NONCES = "MuSig2 nonces "
_ADAPTOR = "Reject: "
_EVENTS = "The maker lists the events, the taker checks these properties: "
_ANNOUNCED = "Verify announcements (signature, nonce count, base, time): "

NUMBERS = (
    _rule(
        "margins of 5 000 sat",
        "Both margins ≥ 5 000 sat, else the order is refused.",
        cut(Terms.__attrs_post_init__, "for role in Role"),
        "?terms",
    ),
    _rule(
        "prices have 2 places, rates 8",
        "Prices are decimal strings with at most 2 places, rates with at most 8.",
        swap(numbers.parse_decimal, 'and len(text.partition(".")[2]) <= places', ""),
        "?terms",
    ),
    _rule(
        "one spelling of a number",
        "Prices and rates are decimal strings: equal values are equal strings.",
        swap(numbers.parse_decimal, '_DECIMAL.fullmatch(text) and text != "-0"', "True"),
        "?terms",
    ),
    _rule(
        "payouts stay within the pool",
        "long(P) = clamp(…, 0, pool).",
        swap(transactions.Payout.long, "max(0, min(self.pool, self._unmoved + gained))", "self._unmoved + gained"),
        "?payout",
    ),
    _rule(
        "dust is left out",
        "A payout < DUST is left out and the other gets the pool.",
        cut(transactions.ContractTransactions.outputs, "if maker < DUST", "if taker < DUST"),
        "?transactions",
    ),
    _rule(
        "change is never dust",
        "Change below DUST goes to the fee.",
        swap(funding.change_value, "change >= DUST", "change > 0"),
        "?transactions",
    ),
)

IDENTITY = (
    _rule(
        "our own points",
        _POINTS + "our own points repeated (a cloned machine); a point equal to one of ours; fund keys with equal x.",
        swap(keys.check_points, "(own, ", "((), "),
        "?setup",
    ),
    _rule(
        "no point",
        _POINTS + "points at infinity.",
        swap(keys.check_points, "len(point) != 33 or not curve.pubkey_verify(point)", "False"),
        "?setup",
    ),
    _rule(
        "publish + revoke",
        _POINTS + "publish + revoke = infinity.",
        cut(keys.check_points, "earlier.add(point)"),
        "?setup",
    ),
    _rule(
        "points of any earlier attempt",
        _POINTS + "a peer's point seen before in any attempt of any position.",
        swap(keys.check_points, "(seen, ", "((), "),
        "?setup",
    ),
    _rule(
        "a point and its negative",
        _POINTS + "fund keys with equal x: a point's negative is the same to a script.",
        swap(keys.check_points, "or negated(point) in other", ""),
        "?setup",
    ),
    _rule(
        "points of setups under way",
        _POINTS + "a peer's point seen before: also one that no record names yet.",
        cut(SetupNode._known_points, "self.points_asked.update"),
        "?setupnode",
    ),
    _rule(
        "an order id that is known",
        _POINTS + "an order id known in any state or archive.",
        cut(place_order, "if position.version"),
        "?position",
    ),
    _rule(
        "keys follow from the attempt's own salt",
        "The salt is 32 random bytes, drawn anew for every attempt: a repeated id or a retried rollover repeats no key.",
        swap(keys.secret_key, "seed + salt + order_id", "seed + order_id"),
        "?keys",
    ),
)

TRANSACTIONS = (
    _rule(
        "the network's timelocks",
        "The three relative locks are parameters of the network, carried in the offer and checked by both.",
        cut(node.taker.Taker.place, "if offer.timelocks"),
        "?taker",
    ),
    _rule(
        "timelocks in order",
        "Liquidation CETs come 12 blocks before settlement CETs, and those before the refund.",
        swap(terms.Timelocks.__attrs_post_init__, "self.liquidation + 1", "1"),
        "?terms",
    ),
    _rule(
        "one confirmation of the lock",
        "Commit and close go out once the lock has one confirmation.",
        put(observing, "LOCK_CONFIRMATIONS", 0),
        "?position",
    ),
    _rule(
        "nobody follows the anchor",
        "Never subscribe to the anchor's script (the whole world shares it).",
        cut(Monitor.follow, "if"),
        "?monitor",
    ),
    _rule(
        "a bump's size",
        "Unconfirmed outputs of ours are spent only by the bump routine (≤ 1 000 vB).",
        put(bump, "MAX_VSIZE", 100_000),
        "?bump",
    ),
    _rule(
        "commit signatures are the receiver's to complete",
        "Commit signatures are adaptor signatures encrypted to the receiver's publish point.",
        swap(signing.verify_commit, "plan.party(signer.other)", "plan.party(signer)"),
        "?setup",
    ),
    _rule(
        "native inputs",
        _INPUTS + "native P2WPKH or P2TR only.",
        cut(parties.check_scripts, "if not is_native(each.script)"),
        "?setup",
    ),
    _rule(
        "confirmed inputs",
        _INPUTS + "confirmed, mature.",
        cut(chain_inputs._fault, "if confirmations < needed"),
        "?broadcast",
    ),
    _rule(
        "mature inputs",
        _INPUTS + "mature.",
        put(chain_inputs, "COINBASE_MATURITY", 1),
        "?broadcast",
    ),
    _rule(
        "unspent inputs",
        _INPUTS + "unspent.",
        cut(chain_inputs._fault, "if one.outpoint not in"),
        "?broadcast",
    ),
    _rule(
        "inputs of the stated value",
        _INPUTS + "of the stated value, in our own view of the chain.",
        cut(chain_inputs._fault, "if output.nValue"),
        "?broadcast",
    ),
    _rule(
        "inputs of the stated script",
        _INPUTS + "of the stated script, in our own view of the chain.",
        cut(chain_inputs._fault, "if bytes(output.scriptPubKey)"),
        "?broadcast",
    ),
    _rule(
        "inputs are looked up",
        _INPUTS + "in our own view of the chain.",
        cut(SetupNode._check_coins, "await self._check_inputs"),
        "?setupnode",
    ),
    _rule(
        "inputs are looked up again",
        _INPUTS + "unspent: those of the taker may have been spent while it took its time.",
        cut(contract_setup.maker, "await CheckCoins"),
        "?setup",
    ),
    _rule(
        "inputs of other locks",
        _INPUTS + "distinct, from those of other locks with us, too.",
        cut(SetupNode._check_unpromised, "for coin in plan"),
        "?setupnode",
    ),
    _rule(
        "distinct inputs",
        _INPUTS + "distinct.",
        cut(parties.check_scripts, "if len({each.outpoint"),
        "?setup",
    ),
    _rule(
        "no inputs of ours",
        _INPUTS + "distinct: none of them is ours.",
        cut(parties.check_party, "if {each.outpoint"),
        "?setup",
    ),
    _rule(
        "twenty inputs",
        _INPUTS + "at most 20 a side.",
        cut(parties.check_scripts, "if not 1 <= len(party.inputs)"),
        "?setup",
    ),
    _rule(
        "witnesses of the lock",
        _INPUTS + "their witnesses are run through a verifier before ours are added.",
        cut(contract_setup.check_lock_witnesses, "for index, witness in"),
        "?setup",
    ),
    _rule(
        "a witness for each input",
        _INPUTS + "their witnesses are run through a verifier before ours are added.",
        cut(contract_setup.check_lock_witnesses, "if len(witnesses)"),
        "?setup",
    ),
    _rule(
        "a witness signs all of the lock",
        _INPUTS + "anything malleable would void every signature.",
        swap(witness._ecdsa, "or signature[-1:] != bytes((ALL,))", ""),
        "?onchain",
    ),
    _rule(
        "native payouts",
        _SCRIPTS + "P2WPKH or P2TR.",
        cut(parties.check_scripts, 'for name, script in (("change_script"'),
        "?setup",
    ),
    _rule(
        "none of our scripts, by both sides' word",
        _SCRIPTS + "none of ours.",
        swap(
            parties.check_party,
            "{own.change_script, own.payout_script, *(each.script for each in own.inputs)}",
            "set()",
        ),
        "?setup",
    ),
    _rule(
        "none of our wallet's scripts",
        _SCRIPTS + "none of ours.",
        cut(SetupNode._check_coins, "for name, scripts in"),
        "?setupnode",
    ),
    _rule(
        "none of the contract's scripts",
        _SCRIPTS + "none of the contract's.",
        cut(parties.check_party, "taken |="),
        "?setup",
    ),
    _rule(
        "change and payout differ",
        _SCRIPTS + "none that leaves open which output is the payout.",
        cut(parties.check_party, "if peer.change_script == peer.payout_script"),
        "?setup",
    ),
    _rule(
        "inputs suffice",
        "The lock's own fee: each side its inputs and change, and half of the rest.",
        cut(parties.check_party, "try"),
        "?setup",
    ),
    _rule(
        "the agreed fee rate",
        "Fees at the order's agreed rate, fixed for the position's life.",
        cut(contract_setup.taker, "if accepted.fee_rate"),
        "?setup",
    ),
    _rule(
        "a fee rate of our own view",
        "The taker refuses a rate outside [½, 3] × its own.",
        cut(SetupNode._check_fee_rate, "if not own"),
        "?setupnode",
    ),
    _rule(
        "the fee rate is asked about",
        "The taker refuses a rate outside [½, 3] × its own.",
        cut(contract_setup.taker, "await CheckFeeRate"),
        "?setup",
    ),
    _rule(
        "a fee rate of 2",
        "Whole sat/vB, ≥ 2.",
        cut(Terms.__attrs_post_init__, '_whole("fee_rate"'),
        "?terms",
    ),
    _rule(
        "the maker's six-block estimate",
        "The maker sets the rate at least at its six-block estimate.",
        put(node.setup, "SIX_BLOCKS", 2),
        "?setupnode",
    ),
)

SIGNATURES = (
    _rule(
        "adaptor: below the order",
        _ADAPTOR + "ŝ ≥ n.",
        cut(Verifier.verify, "if s >= ORDER"),
        "?adaptor",
    ),
    _rule(
        "adaptor: of 65 bytes",
        _ADAPTOR + "any length but 65.",
        cut(Verifier.verify, "if len(self._key) != 32 or"),
        "?adaptor",
    ),
    _rule(
        "adaptor: on the curve, and the nonce that was sent",
        _ADAPTOR + "not on the curve, T or R at infinity; ŝ·G = ε·(R − T) + e·P.",
        swap(Verifier.verify, "keys.serialize(total) == signature[:33]", "True"),
        "?adaptor",
    ),
    _rule(
        "adaptor: what is recovered is checked",
        "recover: t = ε·(s − ŝ), and check t·G = T.",
        cut(adaptor.recover, "if keys.pubkey_from_prvkey(secret) != point"),
        "?adaptor",
    ),
    _rule(
        "adaptor: nonces follow from all that is signed",
        "Nonces are deterministic, from masked secret, x(P), T, m.",
        swap(adaptor.Signer.sign, "self._nonce_prefix + point + message", "self._nonce_prefix + message"),
        "?adaptor",
    ),
    _rule(
        "nonce: answers one nonce of the peer",
        _NONCES + "never answer a second peer nonce.",
        cut(CloseNonce.meet, "if self._met"),
        "?closing",
    ),
    _rule(
        "nonce: signs once",
        _NONCES + "are consumed and wiped by the one signing call.",
        swap(
            CloseSession.sign,
            "self._secret.partial_sign(",
            "closing_unspent(self._secret).partial_sign(",
        ),
        "?closing",
    ),
    _rule(
        "nonce: wiped",
        _NONCES + "live in memory only, and are wiped.",
        cut(CloseNonce.__exit__, "self._secret.wipe()"),
        "?closing",
    ),
    _rule(
        "nonce: not stored",
        _NONCES + "live in memory only.",
        cut(CloseNonce.__reduce__, "raise TypeError"),
        "?closing",
    ),
    _rule(
        "nonce: random",
        _NONCES + "are random.",
        swap(closing._draw, "drawn = entropy(32)", "drawn = bytes([1]) * 32"),
        "?closing",
    ),
    _rule(
        "nonce: bound to message and lock",
        _NONCES + "are bound to (peer nonce, message, lock).",
        swap(closing._draw, "point, close.message, ffi.NULL", "point, ffi.NULL, ffi.NULL"),
        "?closing",
    ),
    _rule(
        "partial signatures",
        "Partial signatures from the peer are verified.",
        cut(CloseSession.verify, "if not valid"),
        "?settlement",
    ),
    _rule(
        "the maker verifies before it signs",
        "Partial signatures from the peer are verified.",
        cut(settlement._maker_close, "session.verify(answer.signature)"),
        "?settlement",
    ),
    _rule(
        "signatures of a spend",
        "Signature of the cooperative spend: verified before ours leaves.",
        cut(Spend.verify, "if not schnorr.verify"),
        "?settlement",
    ),
    _rule(
        "the same close",
        "Accepted{nonce, close txid}: peers that hold different contracts find out.",
        cut(settlement.taker_close, "if accepted.close_txid"),
        "?settlement",
    ),
    _rule(
        "refund signatures",
        "The peer's refund and CET signatures are verified.",
        cut(signing.verify_contract, "if not schnorr.verify"),
        "?setup",
    ),
    _rule(
        "every CET's signature",
        "The peer's refund and CET signatures are verified.",
        swap(
            signing.verify_contract,
            "if not verify(transactions.cet_hash(each), point(each.digits), signature)",
            "if False",
        ),
        "?setup",
    ),
    _rule(
        "as many as there are CETs",
        "CET signatures are one byte string per event, in the order of the locally generated CETs.",
        swap(signing.verify_contract, "len(joined) != adaptor.SIZE * len(outcomes)", "len(joined) % adaptor.SIZE"),
        "?setup",
    ),
)

ORACLE = (
    _rule(
        "announcement: signed (dlc)",
        _ANNOUNCED + "signature.",
        cut(Dlc._check, "if not schnorr.verify"),
        "?dlc",
    ),
    _rule("announcement: our oracle's key (dlc)", _ANNOUNCED + "signature.", cut(Dlc._check, "if signed.key"), "?dlc"),
    _rule(
        "announcement: nonce count (dlc)",
        _ANNOUNCED + "nonce count.",
        swap(Dlc._check, "len(event.nonces), DIGITS),", "DIGITS, DIGITS),"),
        "?dlc",
    ),
    _rule(
        "announcement: base (dlc)",
        _ANNOUNCED + "base.",
        swap(Dlc._check, '("base", said.base, 2)', '("base", 2, 2)'),
        "?dlc",
    ),
    _rule(
        "announcement: time (dlc)",
        _ANNOUNCED + "time.",
        cut(Dlc.parse_announcement, "if signed.event.maturity"),
        "?dlc",
    ),
    _rule(
        "announcement: distinct nonces (dlc)",
        "A nonce used twice, or the key itself as one, gives the key away.",
        cut(Dlc._check, "if len({*event.nonces"),
        "?dlc",
    ),
    _rule(
        "announcement: signed (olivia)",
        _ANNOUNCED + "signature.",
        cut(Olivia._announcement, "if not ssa.verify"),
        "?oracle",
    ),
    _rule(
        "announcement: base (olivia)",
        _ANNOUNCED + "base.",
        cut(Olivia._announcement, '_equal("descriptor.base"'),
        "?oracle",
    ),
    _rule(
        "announcement: time (olivia)",
        _ANNOUNCED + "time.",
        cut(Olivia._announcement, '_equal("expected-outcome-time"'),
        "?oracle",
    ),
    _rule(
        "announcement: nonce count and distinct nonces (olivia)",
        _ANNOUNCED + "nonce count.",
        cut(Olivia._announcement, "if len({*nonces"),
        "?oracle",
    ),
    _rule(
        "announcement: nonces of different events",
        "What opens a digit of one event would open it in the other.",
        cut(announcements.check_nonces, "for announcement in announcements"),
        "?setup",
    ),
    _rule(
        "attestation: every scalar",
        "Verify every scalar against its point before use.",
        swap(
            oracle.parse_attestation,
            "not keys.prvkey_verify(scalar) or keys.pubkey_from_prvkey(scalar) != keys.serialize(point)",
            "False",
        ),
        "?oracle",
    ),
    _rule(
        "the olivia combination",
        "Plainly summed, olivia-v1 is forgeable: therefore weigh each digit.",
        swap(Olivia.weight, "_weights(announcement.key, announcement.nonces)[index]", "1"),
        "?oracle",
    ),
    _rule(
        "a second announcement",
        "A second announcement for an id is refused.",
        cut(OracleClient._differs, "return WorldError("),
        "?oracleclient",
    ),
    _rule(
        "another event's announcement",
        "Verify announcements.",
        cut(OracleClient._parse, "if announcement.id != event"),
        "?oracleclient",
    ),
    _rule(
        "answers are kept for ever",
        "Keep raw bytes for ever.",
        cut(OracleClient.announcement, "if kept is None:\n            await"),
        "?oracleclient",
    ),
    _rule(
        "two attestations: the first counts",
        "Two different attestations: act on the first verified one.",
        cut(OracleClient.attestation, "if known is not None", "kept = await"),
        "?contradictions",
    ),
    _rule(
        "two attestations: the alarm",
        "Two different attestations: raise the alarm, export the proof.",
        cut(OracleClient._weigh, "if found is not None"),
        "?contradictions",
    ),
    _rule(
        "two attestations: no setup with that oracle",
        "Stop using that oracle.",
        cut(SetupNode.check_oracle, "with self.oracle.lent()"),
        "?contradictions",
    ),
    _rule(
        "two attestations: no rollover with that oracle",
        "Stop using that oracle.",
        cut(RolloverNode._check_in_time, "self.setup.check_oracle()"),
        "?rollnode",
    ),
    _rule(
        "two attestations: no signature of the lock",
        "Stop using that oracle.",
        cut(SetupNode._sign_lock, "self.check_oracle()"),
        "?setupnode",
    ),
    _rule(
        "the same announcements (setup)",
        "Peers compare a hash of the announcements used.",
        cut(contract_setup.taker, "if accepted.announcements_hash"),
        "?setup",
    ),
    _rule(
        "the same announcements (rollover)",
        "Peers compare a hash of the announcements used.",
        cut(rollover._agree, "if said.announcements_hash"),
        "?rollover",
    ),
    _rule(
        "the configured oracle",
        "The offer names the oracle that settles.",
        cut(node.taker.Taker.place, "if offer.oracle"),
        "?taker",
    ),
)

EVENTS = (
    _rule(
        "events: hourly",
        _EVENTS + "hourly without gap.",
        cut(schedule.check_events, "if any(later - earlier"),
        "?setup",
    ),
    _rule(
        "events: the first",
        _EVENTS + "the first is the first full hour later than now + 2 min (one hour's slack).",
        cut(schedule.check_events, "if not earliest <="),
        "?setup",
    ),
    _rule(
        "events: the last",
        _EVENTS + "the last one settles, within [now + 23 h, now + 25 h].",
        cut(schedule.check_events, "if not asked_at"),
        "?setup",
    ),
    _rule("events: full hours", _EVENTS + "full hours.", cut(schedule.check_events, "if times[0] % HOUR"), "?setup"),
    _rule(
        "events: the symbol's",
        _EVENTS + "of the contract's symbol.",
        cut(schedule.check_events, "if set(symbols)"),
        "?symbols",
    ),
    _rule(
        "events: two minutes",
        _EVENTS + "later than now + 2 min.",
        put(schedule, "LEAD", 0),
        "?schedule",
    ),
    _rule(
        "events: not decided while we sign (setup)",
        "Its outcome is not known while the contract is signed.",
        cut(SetupNode._sign_lock, "await self._check_undecided"),
        "?setupnode",
    ),
    _rule(
        "regions are moved inward",
        "Liquidation regions, moved inward to a multiple of 256.",
        swap(outcomes._edges, "-(-payout.saturated // step) * step", "payout.saturated"),
        "?outcomes",
    ),
    _rule(
        "early events carry regions alone",
        "The hourly events before expiry carry the prefixes of these regions only.",
        swap(
            outcomes.outcomes,
            "regions = liquidation_regions(terms)",
            "regions = [evolve(each, settlement=False) for each in settlement_outcomes(terms)]",
        ),
        "?outcomes",
    ),
    _rule(
        "fine payouts",
        "Tolerance in satoshis is a parameter of the offer: a coarse one could be the maker's gain.",
        cut(node.taker.check_fineness, "for name, most in"),
        "?attacks",
    ),
)

SAID = (
    _rule(
        "offer: not stale",
        "An offer is stale 10 min after the maker's timestamp.",
        cut(node.taker.Taker.place, "if offer.stale"),
        "?taker",
    ),
    _rule(
        "offer: by its age",
        "An offer is stale 10 min after the maker's timestamp.",
        swap(Offer.stale, "now <= self.created + STALE_AFTER", "now"),
        "?offers",
    ),
    _rule(
        "order: lots and sizes", "Sizes, lots are checked.", cut(Offer.check_order, "if quantity % self.lot"), "?setup"
    ),
    _rule("order: leverage", "Leverage offered is checked.", cut(Offer.check_order, "if leverage not in"), "?setup"),
    _rule(
        "order: the price seen", "A different price is refused.", cut(contract_setup.maker, "if placed.price"), "?setup"
    ),
    _rule(
        "a quote is stale",
        "2 min old: no offer priced from it, no close at it.",
        put(node.prices, "STALE_AFTER", 10_000.0),
        "?prices",
    ),
    _rule(
        "close: the user's limit",
        "Closing price bounded by the user.",
        cut(settlement.taker_close, "if contract.closing is None:\n            await CheckClose"),
        "?settlement",
    ),
    _rule(
        "close: the maker looks again",
        "The maker looks at the price just before its signature: the taker may have waited for a better moment.",
        cut(settlement._maker_close, "if contract.closing is None:\n            await CheckClose"),
        "?settlement",
    ),
    _rule(
        "close: the maker decides",
        "Settlements by policy or by hand.",
        cut(settlement._maker_close, "if refusal is not None"),
        "?settlement",
    ),
    _rule(
        "rollover: rates",
        "Bounds on rates that a taker accepts at rollover come from its configuration.",
        cut(rollover._check_terms, "if abs(rate)"),
        "?rollover",
    ),
    _rule(
        "rollover: the bound by default",
        "At most max(10 × |opening rate|, 0.1 %) and never above 0.5 % per 24 h.",
        swap(rolling.default_rate_bound, ", RATE_MOST)", ", 1)"),
        "?rollover",
    ),
    _rule(
        "rollover: funding",
        "Each peer keeps its own account and checks what the counterparty claims.",
        cut(rollover._check_terms, "if said.funding_to_maker"),
        "?rollover",
    ),
    _rule(
        "rollover: account",
        "Each peer keeps its own account and checks what the counterparty claims.",
        cut(rollover._check_terms, "if said.maker_account"),
        "?rollover",
    ),
    _rule(
        "rollover: the price",
        "Reference, at rollover the price in the terms: the taker checks it within 2 % of its own feed.",
        cut(rollover._check_terms, "if not low <="),
        "?rollover",
    ),
    _rule(
        "rollover: a later expiry",
        "A rollover owes the whole hours by which expiry moves (> 0).",
        cut(rollover._agree, "if hours <= 0"),
        "?rollover",
    ),
    _rule(
        "rollover: the maker's points", _POINTS + "points.", cut(rollover._agree, "await _check_points"), "?rollover"
    ),
    _rule(
        "rollover: the taker's points", _POINTS + "points.", cut(rollover._offer, "await _check_points"), "?rollover"
    ),
    _rule(
        "the peer's key (rollover)",
        "The peer's key against the position's counterparty.",
        cut(position_rolling._check_peer, "if position.peer"),
        "?rolling",
    ),
    _rule(
        "the peer's key (settlement)",
        "The peer's key against the position's counterparty.",
        swap(SettlementNode.find, "or position.peer != peer", ""),
        "?settlenode",
    ),
    _rule(
        "spend: out in our own view",
        "A commit in no block must never be spent together: once revoked, it could be published with the spend.",
        cut(settlement._maker_spend, "if contract is None or"),
        "?settlement",
    ),
    _rule(
        "spend: the event that counts",
        "Outputs are those of the CET that covers the attested price, earliest attested region first.",
        cut(settlement._maker_spend, "if proposed.event_id"),
        "?settlement",
    ),
)

REFUSALS: tuple[Rule, ...] = NUMBERS + IDENTITY + TRANSACTIONS + SIGNATURES + ORACLE + EVENTS + SAID
