"""The refusals of contract.md, and those of domain.md about what the other side says: each to be taken out."""

from __future__ import annotations

from typing import Any

from btclib_secp256k1 import ffi

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
from node.prices import Feed
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
from tests.simulation.removal import cut, put, swap, together
from tests.simulation.rules import _rule
from tests.simulation.witnesses import (
    hostile,
    points_refused,
    refused,
    rollover_lie,
    settlement_lie,
    setup_lie,
    test,
)


def _copied(nonce: Any) -> Any:
    """A secret nonce as it was, to be used again."""
    copy = ffi.new("secp256k1_musig_secnonce *")
    ffi.memmove(copy, nonce._secnonce, ffi.sizeof("secp256k1_musig_secnonce"))
    return copy


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
        test("terms", "a_margin_below_5000_satoshis_is_refused"),
    ),
    _rule(
        "prices have 2 places, rates 8",
        "Prices are decimal strings with at most 2 places, rates with at most 8.",
        swap(numbers.parse_decimal, 'and len(text.partition(".")[2]) <= places', ""),
        test("terms", "bad_rates"),
    ),
    _rule(
        "one spelling of a number",
        "Prices and rates are decimal strings: equal values are equal strings.",
        swap(numbers.parse_decimal, '_DECIMAL.fullmatch(text) and text != "-0"', "True"),
        test("terms", "bad_prices"),
    ),
    _rule(
        "payouts stay within the pool",
        "long(P) = clamp(…, 0, pool).",
        swap(transactions.Payout.long, "max(0, min(self.pool, self._unmoved + gained))", "self._unmoved + gained"),
        test("payout", "bankrupt_and_saturated_are_exact"),
    ),
    _rule(
        "dust is left out",
        "A payout < DUST is left out and the other gets the pool.",
        cut(transactions.ContractTransactions.outputs, "if maker < DUST", "if taker < DUST"),
        test("transactions", "dust_is_left_out_and_the_other_gets_the_pool"),
    ),
    _rule(
        "change is never dust",
        "Change below DUST goes to the fee.",
        swap(funding.change_value, "change >= DUST", "change > 0"),
        test("transactions", "change_at_its_edges"),
    ),
)

IDENTITY = (
    _rule(
        "our own points",
        _POINTS + "our own points repeated (a cloned machine); a point equal to one of ours; fund keys with equal x.",
        swap(keys.check_points, "(own, ", "((), "),
        points_refused("a cloned machine"),
        setup_lie("TakerContract-fund is our fund"),
    ),
    _rule(
        "no point",
        _POINTS + "points at infinity.",
        swap(keys.check_points, "len(point) != 33 or not curve.pubkey_verify(point)", "False"),
        points_refused("infinity"),
        points_refused("no x of the curve"),
        setup_lie("Accepted-fund at infinity"),
    ),
    _rule(
        "publish + revoke",
        _POINTS + "publish + revoke = infinity.",
        cut(keys.check_points, "earlier.add(point)"),
        points_refused("publish + revoke = infinity"),
        setup_lie("TakerContract-revoke cancels publish out"),
    ),
    _rule(
        "points of any earlier attempt",
        _POINTS + "a peer's point seen before in any attempt of any position.",
        swap(keys.check_points, "(seen, ", "((), "),
        points_refused("a point seen before"),
        test("contract_setup", "a_point_that_was_seen_before_is_refused"),
        hostile("maker: the points of an earlier contract"),
        hostile("taker: the points of an earlier contract"),
    ),
    _rule(
        "a point and its negative",
        _POINTS + "fund keys with equal x: a point's negative is the same to a script.",
        swap(keys.check_points, "or negated(point) in other", ""),
        points_refused("our fund point negated: equal x"),
        points_refused("the negative of one"),
    ),
    _rule(
        "points of setups under way",
        _POINTS + "a peer's point seen before: also one that no record names yet.",
        cut(SetupNode._known_points, "self.points_asked.update"),
        test("money_rules", "a_point_that_was_named_once_is_known_at_once"),
    ),
    _rule(
        "an order id that is known",
        _POINTS + "an order id known in any state or archive.",
        cut(place_order, "if position.version"),
        refused("an order id twice"),
        refused("the maker's order id after its end"),
    ),
    _rule(
        "keys follow from the attempt's own salt",
        "The salt is 32 random bytes, drawn anew for every attempt: a repeated id repeats no key.",
        swap(keys.secret_key, "seed + salt + order_id", "seed + order_id"),
        test("keys", "a_key_is_the_hash_that_the_specification_says"),
    ),
)

TRANSACTIONS = (
    _rule(
        "the network's timelocks",
        "The three relative locks are parameters of the network, carried in the offer and checked by both.",
        cut(node.taker.Taker.place, "if offer.timelocks"),
        test("money_rules", "offers_that_are_old_or_of_other_rules_are_not_taken"),
    ),
    _rule(
        "timelocks in order",
        "Liquidation CETs come 12 blocks before settlement CETs, and those before the refund.",
        swap(terms.Timelocks.__attrs_post_init__, "self.liquidation + 1", "1"),
        test("terms", "timelocks_are_in_order_and_fit_bip68"),
    ),
    _rule(
        "one confirmation of the lock",
        "Commit and close go out once the lock has one confirmation.",
        put(observing, "LOCK_CONFIRMATIONS", 0),
        test("position", "states_of_a_whole_life_to_a_cet"),
    ),
    _rule(
        "nobody follows the anchor",
        "Never subscribe to the anchor's script (the whole world shares it).",
        cut(Monitor.follow, "if"),
        test("monitor", "the_anchors_script_is_nobodys_to_follow"),
    ),
    _rule(
        "a bump's size",
        "Unconfirmed outputs of ours are spent only by the bump routine (≤ 1 000 vB).",
        put(bump, "MAX_VSIZE", 100_000),
        test("money_rules", "a_bump_spends_no_more_than_fits_into_a_thousand_vbytes"),
    ),
    _rule(
        "commit signatures are the receiver's to complete",
        "Commit signatures are adaptor signatures encrypted to the receiver's publish point.",
        swap(signing.verify_commit, "plan.party(signer.other)", "plan.party(signer)"),
        test("transactions", "a_commit_signature_is_the_receivers_to_complete"),
    ),
    _rule(
        "native inputs",
        _INPUTS + "native P2WPKH or P2TR only.",
        cut(parties.check_scripts, "if not is_native(each.script)"),
        setup_lie("TakerContract-an input of another kind"),
    ),
    _rule(
        "confirmed inputs",
        _INPUTS + "confirmed, mature.",
        cut(chain_inputs._fault, "if confirmations < needed"),
        test("broadcast", "inputs_that_cannot_be_spent"),
    ),
    _rule(
        "mature inputs",
        _INPUTS + "mature.",
        put(chain_inputs, "COINBASE_MATURITY", 1),
        test("broadcast", "inputs_that_cannot_be_spent"),
    ),
    _rule(
        "unspent inputs",
        _INPUTS + "unspent.",
        cut(chain_inputs._fault, "if one.outpoint not in"),
        test("broadcast", "inputs_that_cannot_be_spent"),
    ),
    _rule(
        "inputs of the stated value",
        _INPUTS + "of the stated value, in our own view of the chain.",
        cut(chain_inputs._fault, "if output.nValue"),
        test("broadcast", "inputs_that_are_not_as_stated"),
    ),
    _rule(
        "inputs of the stated script",
        _INPUTS + "of the stated script, in our own view of the chain.",
        cut(chain_inputs._fault, "if bytes(output.scriptPubKey)"),
        test("broadcast", "inputs_that_are_not_as_stated"),
    ),
    _rule(
        "inputs are looked up",
        _INPUTS + "in our own view of the chain.",
        cut(SetupNode._check_coins, "await self._check_inputs"),
        test("setup_node", "coins_of_the_peer_are_looked_up_in_our_own_view_of_the_chain"),
        hostile("taker: an input that does not exist"),
    ),
    _rule(
        "inputs are looked up again",
        _INPUTS + "unspent: those of the taker may have been spent while it took its time.",
        cut(contract_setup.maker, "await CheckCoins"),
        test("contract_setup", "coins_are_looked_at_again_before_the_makers_signatures_leave"),
    ),
    _rule(
        "inputs of other locks",
        _INPUTS + "distinct, from those of other locks with us, too.",
        cut(SetupNode._check_unpromised, "for coin in plan"),
        test("attacks", "coins_that_a_peer_brings_into_two_locks_at_once_are_refused"),
    ),
    _rule(
        "distinct inputs",
        _INPUTS + "distinct.",
        cut(parties.check_scripts, "if len({each.outpoint"),
        setup_lie("TakerContract-an input twice"),
    ),
    _rule(
        "no inputs of ours",
        _INPUTS + "distinct: none of them is ours.",
        cut(parties.check_party, "if {each.outpoint"),
        setup_lie("TakerContract-an input of ours"),
    ),
    _rule(
        "twenty inputs",
        _INPUTS + "at most 20 a side.",
        cut(parties.check_scripts, "if not 1 <= len(party.inputs)"),
        test("money_rules", "more_than_twenty_inputs_are_refused"),
    ),
    _rule(
        "witnesses of the lock",
        _INPUTS + "their witnesses are run through a verifier before ours are added.",
        cut(contract_setup.check_lock_witnesses, "for index, witness in"),
        setup_lie("TakerLock-a bent witness"),
        setup_lie("MakerLock-a bent witness"),
        hostile("taker: a witness that is none"),
    ),
    _rule(
        "a witness for each input",
        _INPUTS + "their witnesses are run through a verifier before ours are added.",
        cut(contract_setup.check_lock_witnesses, "if len(witnesses)"),
        setup_lie("TakerLock-a witness too many"),
    ),
    _rule(
        "a witness signs all of the lock",
        _INPUTS + "anything malleable would void every signature.",
        swap(witness._ecdsa, "or signature[-1:] != bytes((ALL,))", ""),
        test("onchain", "signatures_that_do_not_bind_all_of_the_lock_are_refused"),
    ),
    _rule(
        "native payouts",
        _SCRIPTS + "P2WPKH or P2TR.",
        cut(parties.check_scripts, 'for name, script in (("change_script"'),
        setup_lie("Accepted-payout_script is P2SH"),
    ),
    _rule(
        "none of our scripts, by both sides' word",
        _SCRIPTS + "none of ours.",
        swap(
            parties.check_party,
            "{own.change_script, own.payout_script, *(each.script for each in own.inputs)}",
            "set()",
        ),
        setup_lie("TakerContract-payout_script is our payout"),
    ),
    _rule(
        "none of our wallet's scripts",
        _SCRIPTS + "none of ours.",
        cut(SetupNode._check_coins, "for name, scripts in"),
        test("setup_node", "coins_of_the_peer_are_looked_up_in_our_own_view_of_the_chain"),
    ),
    _rule(
        "none of the contract's scripts",
        _SCRIPTS + "none of the contract's.",
        cut(parties.check_party, "taken |="),
        setup_lie("TakerContract-payout_script is the lock's"),
        setup_lie("TakerContract-payout_script is the commit's"),
    ),
    _rule(
        "change and payout differ",
        _SCRIPTS + "none that leaves open which output is the payout.",
        cut(parties.check_party, "if peer.change_script == peer.payout_script"),
        setup_lie("TakerContract-change and payout are one"),
    ),
    _rule(
        "inputs suffice",
        "The lock's own fee: each side its inputs and change, and half of the rest.",
        cut(parties.check_party, "try"),
        setup_lie("TakerContract-an input that pays too little"),
    ),
    _rule(
        "the agreed fee rate",
        "Fees at the order's agreed rate, fixed for the position's life.",
        cut(contract_setup.taker, "if accepted.fee_rate"),
        setup_lie("Accepted-another fee rate"),
        hostile("maker: another fee rate"),
    ),
    _rule(
        "a fee rate of our own view",
        "The taker refuses a rate outside [½, 3] × its own.",
        cut(SetupNode._check_fee_rate, "if not own"),
        test("setup_node", "a_fee_rate_is_taken_within_half_and_three_times_our_own"),
    ),
    _rule(
        "the fee rate is asked about",
        "The taker refuses a rate outside [½, 3] × its own.",
        cut(contract_setup.taker, "await CheckFeeRate"),
        test("contract_setup", "a_fee_rate_beyond_our_own_estimate_is_refused"),
    ),
    _rule(
        "a fee rate of 2",
        "Whole sat/vB, ≥ 2.",
        cut(Terms.__attrs_post_init__, '_whole("fee_rate"'),
        test("terms", "bad_terms_name_the_field[fee_rate-1]"),
    ),
    _rule(
        "the maker's six-block estimate",
        "The maker sets the rate at least at its six-block estimate.",
        swap(SetupNode.fee_rate, "estimate is None", "True"),
        test("setup_node", "without_a_chain_the_default_rate_is_our_own"),
    ),
)

SIGNATURES = (
    _rule(
        "adaptor: below the order",
        _ADAPTOR + "ŝ ≥ n.",
        cut(Verifier.verify, "if s >= ORDER"),
        test("adaptor", "a_scalar_has_one_encoding"),
    ),
    _rule(
        "adaptor: of 65 bytes",
        _ADAPTOR + "any length but 65.",
        cut(Verifier.verify, "if len(self._key) != 32 or"),
        test("adaptor", "a_malformed_signature_is_not_valid"),
    ),
    _rule(
        "adaptor: on the curve, and the nonce that was sent",
        _ADAPTOR + "not on the curve, T or R at infinity; ŝ·G = ε·(R − T) + e·P.",
        swap(Verifier.verify, "keys.serialize(total) == signature[:33]", "True"),
        test("adaptor", "a_malformed_signature_is_not_valid"),
        test("adaptor", "a_nonce_at_infinity_is_not_valid"),
        test("adaptor", "a_signature_is_bound_to_key_message_and_point"),
    ),
    _rule(
        "adaptor: what is recovered is checked",
        "recover: t = ε·(s − ŝ), and check t·G = T.",
        cut(adaptor.recover, "if keys.pubkey_from_prvkey(secret) != point"),
        test("adaptor", "recovery_checks_what_it_finds"),
    ),
    _rule(
        "adaptor: nonces follow from all that is signed",
        "Nonces are deterministic, from masked secret, x(P), T, m.",
        swap(adaptor.Signer.sign, "self._nonce_prefix + point + message", "self._nonce_prefix + message"),
        test("adaptor", "no_nonce_serves_two_messages_or_points_or_keys"),
    ),
    _rule(
        "nonce: answers one nonce of the peer",
        _NONCES + "never answer a second peer nonce.",
        cut(CloseNonce.meet, "if self._met"),
        test("closing", "a_nonce_answers_one_nonce_of_the_peer"),
    ),
    _rule(
        "nonce: signs once",
        _NONCES + "are consumed and wiped by the one signing call.",
        put(closing.musig.SecretNonce, "_take", _copied),
        test("closing", "a_session_signs_once"),
    ),
    _rule(
        "nonce: wiped",
        _NONCES + "live in memory only, and are wiped.",
        cut(CloseNonce.__exit__, "self._secret.wipe()"),
        test("closing", "leaving_the_block_wipes_the_nonce"),
    ),
    _rule(
        "nonce: not stored",
        _NONCES + "live in memory only.",
        cut(CloseNonce.__reduce__, "raise TypeError"),
        test("closing", "a_nonce_can_be_neither_stored_nor_copied_to_sign_twice"),
    ),
    _rule(
        "nonce: random",
        _NONCES + "are random.",
        swap(closing._draw, "drawn = entropy(32)", "drawn = bytes([1]) * 32"),
        test("closing", "every_nonce_draws_anew"),
    ),
    _rule(
        "nonce: bound to message and lock",
        _NONCES + "are bound to (peer nonce, message, lock).",
        swap(closing._draw, "point, close.message, ffi.NULL", "point, ffi.NULL, ffi.NULL"),
        test("closing", "two_closes_share_no_nonce_even_when_chance_repeats_itself"),
    ),
    _rule(
        "partial signatures",
        "Partial signatures from the peer are verified.",
        cut(CloseSession.verify, "if not valid"),
        test("closing", "a_partial_signature_that_is_not_the_peers_is_refused"),
        settlement_lie("MakerPartial-signature is bent"),
        hostile("maker: a wrong partial signature"),
    ),
    _rule(
        "the maker verifies before it signs",
        "Partial signatures from the peer are verified.",
        cut(settlement._maker_close, "session.verify(answer.signature)"),
        settlement_lie("TakerPartial-signature is bent"),
    ),
    _rule(
        "signatures of a spend",
        "Signature of the cooperative spend: verified before ours leaves.",
        cut(Spend.verify, "if not schnorr.verify"),
        test("closing", "the_signature_of_a_spend_is_checked_and_can_be_made_again"),
        hostile("taker: a wrong signature of a spend"),
    ),
    _rule(
        "the same close",
        "Accepted{nonce, close txid}: peers that hold different contracts find out.",
        cut(settlement.taker_close, "if accepted.close_txid"),
        settlement_lie("AcceptClose-txid is another"),
        test("settlement", "two_sides_that_hold_different_contracts_find_out"),
        hostile("maker: another close"),
    ),
    _rule(
        "refund signatures",
        "The peer's refund and CET signatures are verified.",
        cut(signing.verify_contract, "if not schnorr.verify"),
        setup_lie("MakerContract-refund signature is bent"),
        hostile("taker: a wrong refund signature"),
    ),
    _rule(
        "every CET's signature",
        "The peer's refund and CET signatures are verified.",
        swap(
            signing.verify_contract,
            "if not verify(transactions.cet_hash(each), point(each.digits), signature)",
            "if False",
        ),
        setup_lie("MakerContract-last CET signature is bent"),
        hostile("maker: a wrong CET signature"),
    ),
    _rule(
        "as many as there are CETs",
        "CET signatures are one byte string per event, in the order of the locally generated CETs.",
        swap(signing.verify_contract, "len(joined) != adaptor.SIZE * len(outcomes)", "len(joined) % adaptor.SIZE"),
        setup_lie("MakerContract-a CET signature is missing"),
        setup_lie("MakerContract-a CET signature too many"),
    ),
)

ORACLE = (
    _rule(
        "announcement: signed (dlc)",
        _ANNOUNCED + "signature.",
        cut(Dlc._check, "if not schnorr.verify"),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    _rule(
        "announcement: our oracle's key (dlc)",
        _ANNOUNCED + "signature.",
        cut(Dlc._check, "if signed.key"),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    _rule(
        "announcement: nonce count (dlc)",
        _ANNOUNCED + "nonce count.",
        swap(Dlc._check, "len(event.nonces), DIGITS),", "DIGITS, DIGITS),"),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    _rule(
        "announcement: base (dlc)",
        _ANNOUNCED + "base.",
        swap(Dlc._check, '("base", said.base, 2)', '("base", 2, 2)'),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    _rule(
        "announcement: time (dlc)",
        _ANNOUNCED + "time.",
        cut(Dlc.parse_announcement, "if signed.event.maturity"),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    _rule(
        "announcement: distinct nonces (dlc)",
        "A nonce used twice, or the key itself as one, gives the key away.",
        cut(Dlc._check, "if len({*event.nonces"),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    _rule(
        "announcement: signed (olivia)",
        _ANNOUNCED + "signature.",
        cut(Olivia._announcement, "if not ssa.verify"),
        test("oracle", "an_answer_that_is_none"),
        test("oracle", "another_oracles_announcement_is_refused"),
    ),
    _rule(
        "announcement: base (olivia)",
        _ANNOUNCED + "base.",
        cut(Olivia._announcement, '_equal("descriptor.base"'),
        test("oracle", "what_is_signed_is_checked_in_full"),
    ),
    _rule(
        "announcement: time (olivia)",
        _ANNOUNCED + "time.",
        cut(Olivia._announcement, '_equal("expected-outcome-time"'),
        test("oracle", "what_is_signed_is_checked_in_full"),
    ),
    _rule(
        "announcement: nonce count and distinct nonces (olivia)",
        _ANNOUNCED + "nonce count.",
        cut(Olivia._announcement, "if len({*nonces"),
        test("oracle", "what_is_signed_is_checked_in_full"),
    ),
    _rule(
        "announcement: nonces of different events",
        "What opens a digit of one event would open it in the other.",
        cut(announcements.check_nonces, "for announcement in announcements"),
        test("contract_setup", "an_oracle_that_uses_a_nonce_twice_settles_nothing"),
    ),
    _rule(
        "attestation: every scalar",
        "Verify every scalar against its point before use.",
        swap(
            oracle.parse_attestation,
            "not keys.prvkey_verify(scalar) or keys.pubkey_from_prvkey(scalar) != keys.serialize(point)",
            "False",
        ),
        test("oracle", "attestations_are_verified_in_full"),
        test("dlc", "attestations_are_verified_in_full"),
    ),
    _rule(
        "the olivia combination",
        "Plainly summed, olivia-v1 is forgeable: therefore weigh each digit.",
        swap(Olivia.weight, "_weights(announcement.key, announcement.nonces)[index]", "1"),
        test("oracle", "weights_open_nothing_by_any_scaling"),
    ),
    _rule(
        "a second announcement",
        "A second announcement for an id is refused.",
        cut(OracleClient._differs, "return WorldError("),
        test("oracle_client", "a_second_announcement_is_refused"),
    ),
    _rule(
        "another event's announcement",
        "Verify announcements.",
        cut(OracleClient._parse, "if announcement.id != event"),
        test("oracle_client", "the_announcement_of_another_event_is_refused"),
    ),
    _rule(
        "answers are kept for ever",
        "Keep raw bytes for ever.",
        cut(OracleClient.announcement, "if kept is None:\n            await"),
        test("oracle_client", "an_announcement_is_fetched_once_and_kept_as_it_came"),
    ),
    _rule(
        "two attestations: the first counts",
        "Two different attestations: act on the first verified one.",
        cut(OracleClient.attestation, "if known is not None", "kept = await"),
        test("contradictions", "the_first_attestation_is_kept_and_stands_after_a_restart"),
    ),
    _rule(
        "two attestations: the alarm",
        "Two different attestations: raise the alarm, export the proof.",
        cut(OracleClient._weigh, "if found is not None"),
        test("contradictions", "asking_again_finds_out"),
    ),
    _rule(
        "two attestations: no setup with that oracle",
        "Stop using that oracle.",
        cut(SetupNode.check_oracle, "with self.oracle.lent()"),
        test("oracle_watch", "both_sides_notice_and_the_contract_settles_at_the_first_price"),
    ),
    _rule(
        "two attestations: no rollover with that oracle",
        "Stop using that oracle.",
        together(
            cut(RolloverNode._check_in_time, "self.setup.check_oracle()"),
            cut(SetupNode._announcements, "self.check_oracle()"),
        ),
        test("money_rules", "nothing_is_rolled_over_with_an_oracle_that_said_two_things"),
    ),
    _rule(
        "two attestations: no signature of the lock",
        "Stop using that oracle.",
        cut(SetupNode._sign_lock, "self.check_oracle()"),
        test("oracle_watch", "both_sides_notice_and_the_contract_settles_at_the_first_price"),
    ),
    _rule(
        "the same announcements (setup)",
        "Peers compare a hash of the announcements used.",
        cut(contract_setup.taker, "if accepted.announcements_hash"),
        setup_lie("Accepted-other announcements"),
    ),
    _rule(
        "the same announcements (rollover)",
        "Peers compare a hash of the announcements used.",
        cut(rollover._agree, "if said.announcements_hash"),
        rollover_lie("maker RolloverTerms-other announcements"),
    ),
    _rule(
        "the configured oracle",
        "The offer names the oracle that settles.",
        cut(node.taker.Taker.place, "if offer.oracle"),
        test("money_rules", "offers_that_are_old_or_of_other_rules_are_not_taken"),
    ),
)

EVENTS = (
    _rule(
        "events: hourly",
        _EVENTS + "hourly without gap.",
        cut(schedule.check_events, "if any(later - earlier"),
        setup_lie("Accepted-an event is missing"),
    ),
    _rule(
        "events: the first",
        _EVENTS + "the first is the first full hour later than now + 2 min (one hour's slack).",
        cut(schedule.check_events, "if not earliest <="),
        setup_lie("Accepted-the first events left out"),
        setup_lie("Accepted-an event that is past"),
    ),
    _rule(
        "events: the last",
        _EVENTS + "the last one settles, within [now + 23 h, now + 25 h].",
        cut(schedule.check_events, "if not asked_at"),
        setup_lie("Accepted-the last event too early"),
    ),
    _rule(
        "events: full hours",
        _EVENTS + "full hours.",
        cut(schedule.check_events, "if times[0] % HOUR"),
        setup_lie("Accepted-events off the hour"),
    ),
    _rule(
        "events: the symbol's",
        _EVENTS + "of the contract's symbol.",
        cut(schedule.check_events, "if set(symbols)"),
        test("symbols", "a_maker_that_lists_events_of_another_symbol_is_refused"),
    ),
    _rule(
        "events: two minutes",
        _EVENTS + "later than now + 2 min.",
        put(schedule, "LEAD", 0),
        test("money_rules", "the_first_event_is_more_than_two_minutes_away"),
    ),
    _rule(
        "events: not decided while we sign (setup)",
        "Its outcome is not known while the contract is signed.",
        cut(SetupNode._sign_lock, "await self.check_undecided"),
        test("attacks", "a_contract_that_was_decided_while_the_peer_took_its_time_is_not_signed"),
    ),
    _rule(
        "regions are moved inward",
        "Liquidation regions, moved inward to a multiple of 256.",
        swap(outcomes._edges, "-(-payout.saturated // step) * step", "payout.saturated"),
        test("outcomes", "liquidation_regions_are_what_the_specification_says"),
    ),
    _rule(
        "early events carry regions alone",
        "The hourly events before expiry carry the prefixes of these regions only.",
        swap(
            outcomes.outcomes,
            "regions = liquidation_regions(terms)",
            "regions = [evolve(each, settlement=False) for each in settlement_outcomes(terms)]",
        ),
        test("outcomes", "events_but_the_last_carry_the_regions_alone"),
    ),
    _rule(
        "fine payouts",
        "Tolerance in satoshis is a parameter of the offer: a coarse one could be the maker's gain.",
        cut(node.taker.check_fineness, "for name, most in"),
        test("attacks", "steps_so_coarse_that_one_of_them_is_the_makers_gain_are_refused"),
    ),
)

SAID = (
    _rule(
        "offer: not stale",
        "An offer is stale 10 min after the maker's timestamp.",
        cut(node.taker.Taker.place, "if offer.stale"),
        test("money_rules", "offers_that_are_old_or_of_other_rules_are_not_taken"),
    ),
    _rule(
        "offer: by its age",
        "An offer is stale 10 min after the maker's timestamp.",
        swap(Offer.stale, "now <= self.created + STALE_AFTER", "now"),
        test("ping_identify_offers", "an_offer_is_stale_after_ten_minutes_and_before_its_time"),
    ),
    _rule(
        "order: lots and sizes",
        "Sizes, lots are checked.",
        cut(Offer.check_order, "if quantity % self.lot"),
        setup_lie("PlaceOrder-quantity is no lot"),
        setup_lie("PlaceOrder-quantity above the limit"),
    ),
    _rule(
        "order: leverage",
        "Leverage offered is checked.",
        cut(Offer.check_order, "if leverage not in"),
        setup_lie("PlaceOrder-leverage not offered"),
    ),
    _rule(
        "order: the price seen",
        "A different price is refused.",
        cut(contract_setup.maker, "if placed.price"),
        setup_lie("PlaceOrder-price is another"),
    ),
    _rule(
        "a quote is stale",
        "2 min old: no offer priced from it, no close at it.",
        swap(Feed.problem, "self._clock.now() <= self.stale_at", "True"),
        test("desk", "nothing_is_closed_at_a_quote_older_than_two_minutes"),
    ),
    _rule(
        "close: the user's limit",
        "Closing price bounded by the user.",
        cut(settlement.taker_close, "if contract.closing is None:\n            await CheckClose"),
        test("settlement", "the_taker_looks_at_the_price_before_it_proposes_and_before_it_signs"),
    ),
    _rule(
        "close: the maker looks again",
        "The maker looks at the price just before its signature: the taker may have waited for a better moment.",
        cut(settlement._maker_close, "if contract.closing is None:\n            await CheckClose"),
        test("settlement", "the_maker_looks_at_the_price_before_it_signs"),
    ),
    _rule(
        "close: the maker decides",
        "Settlements by policy or by hand.",
        cut(settlement._maker_close, "if refusal is not None"),
        test("settlement", "the_makers_decision_is_final"),
    ),
    _rule(
        "rollover: rates",
        "Bounds on rates that a taker accepts at rollover come from its configuration.",
        cut(rollover._check_terms, "if abs(rate)"),
        rollover_lie("maker RolloverTerms-rate beyond our bound"),
        test("rollover", "the_taker_bounds_the_rate_as_it_is_told"),
    ),
    _rule(
        "rollover: the bound by default",
        "At most max(10 × |opening rate|, 0.1 %) and never above 0.5 % per 24 h.",
        swap(rolling.default_rate_bound, ", RATE_MOST)", ", 1)"),
        test("rollover", "the_default_bound_on_rates"),
    ),
    _rule(
        "rollover: funding",
        "Each peer keeps its own account and checks what the counterparty claims.",
        cut(rollover._check_terms, "if said.funding_to_maker"),
        rollover_lie("maker RolloverTerms-a satoshi more"),
    ),
    _rule(
        "rollover: account",
        "Each peer keeps its own account and checks what the counterparty claims.",
        cut(rollover._check_terms, "if said.maker_account"),
        rollover_lie("maker RolloverTerms-another account"),
    ),
    _rule(
        "rollover: the price",
        "Reference, at rollover the price in the terms: the taker checks it within 2 % of its own feed.",
        cut(rollover._check_terms, "if not low <="),
        rollover_lie("maker RolloverTerms-price more than 2 % above our feed"),
        hostile("maker: a price far from the market"),
    ),
    _rule(
        "rollover: a later expiry",
        "A rollover owes the whole hours by which expiry moves (> 0).",
        cut(rollover._agree, "if hours <= 0"),
        test("rollover", "an_expiry_that_does_not_move_is_none"),
    ),
    _rule(
        "rollover: the maker's points",
        _POINTS + "points.",
        cut(rollover._agree, "await _check_points"),
        rollover_lie("maker RolloverTerms-publish at infinity"),
        test("rollover", "a_point_that_was_seen_before_is_refused"),
    ),
    _rule(
        "rollover: the taker's points",
        _POINTS + "points.",
        cut(rollover._offer, "await _check_points"),
        rollover_lie("taker ProposeRollover-publish at infinity"),
    ),
    _rule(
        "the peer's key (rollover)",
        "The peer's key against the position's counterparty.",
        cut(position_rolling._check_peer, "if position.peer"),
        test("position_rolling", "nobody_else_rolls_a_position_over"),
    ),
    _rule(
        "the peer's key (settlement)",
        "The peer's key against the position's counterparty.",
        swap(SettlementNode.find, "or position.peer != peer", ""),
        test("settlement_node", "a_stranger_learns_nothing_of_a_position"),
    ),
    _rule(
        "spend: out in our own view",
        "A commit in no block must never be spent together: once revoked, it could be published with the spend.",
        cut(settlement._maker_spend, "if contract is None or"),
        test("settlement", "a_commit_that_is_not_out_is_never_spent_together"),
    ),
    _rule(
        "spend: the event that counts",
        "Outputs are those of the CET that covers the attested price, earliest attested region first.",
        cut(settlement._maker_spend, "if proposed.event_id"),
        settlement_lie("ProposeSpend-event is another"),
        test("settlement", "peers_that_know_of_different_events_find_out"),
    ),
)

REFUSALS = {
    "numbers": NUMBERS,
    "identity": IDENTITY,
    "transactions": TRANSACTIONS,
    "signatures": SIGNATURES,
    "oracle": ORACLE,
    "events": EVENTS,
    "said": SAID,
}
