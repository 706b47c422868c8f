"""The refusals of contract.md, of what both compute and of what the peer brings: each to be taken out."""

from __future__ import annotations

from typing import Any

from btclib_secp256k1 import ffi, musig

import node.oracle.client
import node.oracle.contradictions
import node.prices
import node.taker
from node.chain import inputs as chain_inputs
from node.chain.monitor import Monitor
from node.position import observing
from node.position.commands import place_order
from node.setup import SetupNode
from protocols import contract_setup, settlement
from protocols.contract import (
    adaptor,
    bump,
    closing,
    funding,
    keys,
    numbers,
    parties,
    signing,
    terms,
    transactions,
    witness,
)
from protocols.contract.adaptor import Verifier
from protocols.contract.closing import CloseNonce, CloseSession, Spend
from protocols.contract.payout import Payout
from protocols.contract.terms import Terms
from tests.simulation.removal import cut, put, swap
from tests.simulation.rules import rule
from tests.simulation.witnesses import (
    hostile,
    points_refused,
    refused,
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

NUMBERS = (
    rule(
        "margins of 5 000 sat",
        "Both margins ≥ 5 000 sat, else the order is refused.",
        cut(Terms.__attrs_post_init__, "for role in Role"),
        test("terms", "a_margin_below_5000_satoshis_is_refused"),
    ),
    rule(
        "prices have 2 places, rates 8",
        "Prices are decimal strings with at most 2 places, rates with at most 8.",
        swap(numbers.parse_decimal, 'and len(text.partition(".")[2]) <= places', ""),
        test("terms", "bad_rates"),
    ),
    rule(
        "one spelling of a number",
        "Prices and rates are decimal strings: equal values are equal strings.",
        swap(numbers.parse_decimal, '_DECIMAL.fullmatch(text) and text != "-0"', "True"),
        test("terms", "bad_prices"),
    ),
    rule(
        "payouts stay within the pool",
        "long(P) = clamp(…, 0, pool).",
        swap(Payout.long, "max(0, min(self.pool, self._unmoved + gained))", "self._unmoved + gained"),
        test("payout", "bankrupt_and_saturated_are_exact"),
    ),
    rule(
        "dust is left out",
        "A payout < DUST is left out and the other gets the pool.",
        cut(transactions.ContractTransactions.outputs, "if maker < DUST", "if taker < DUST"),
        test("transactions", "dust_is_left_out_and_the_other_gets_the_pool"),
    ),
    rule(
        "change is never dust",
        "Change below DUST goes to the fee.",
        swap(funding.change_value, "change >= DUST", "change > 0"),
        test("transactions", "change_at_its_edges"),
    ),
)

IDENTITY = (
    rule(
        "our own points",
        _POINTS + "our own points repeated (a cloned machine); a point equal to one of ours; fund keys with equal x.",
        swap(keys.check_points, "(own, ", "((), "),
        points_refused("a cloned machine"),
        setup_lie("TakerContract-fund is our fund"),
    ),
    rule(
        "no point",
        _POINTS + "points at infinity.",
        swap(keys.check_points, "len(point) != 33 or not curve.pubkey_verify(point)", "False"),
        points_refused("infinity"),
        points_refused("no x of the curve"),
        setup_lie("Accepted-fund at infinity"),
    ),
    rule(
        "publish + revoke",
        _POINTS + "publish + revoke = infinity.",
        cut(keys.check_points, "earlier.add(point)"),
        points_refused("publish + revoke = infinity"),
        setup_lie("TakerContract-revoke cancels publish out"),
    ),
    rule(
        "points of any earlier attempt",
        _POINTS + "a peer's point seen before in any attempt of any position.",
        swap(keys.check_points, "(seen, ", "((), "),
        points_refused("a point seen before"),
        test("contract_setup", "a_point_that_was_seen_before_is_refused"),
    ),
    rule(
        "a point and its negative",
        _POINTS + "fund keys with equal x: a point's negative is the same to a script.",
        swap(keys.check_points, "or negated(point) in other", ""),
        points_refused("our fund point negated: equal x"),
        points_refused("the negative of one"),
    ),
    rule(
        "points of setups under way",
        _POINTS + "a peer's point seen before: also one that no record names yet.",
        cut(SetupNode._known_points, "self.points_asked.update"),
        test("money_rules", "a_point_that_was_named_once_is_known_at_once"),
    ),
    rule(
        "an order id that is known",
        _POINTS + "an order id known in any state or archive.",
        cut(place_order, "if position.version"),
        refused("an order id twice"),
        refused("the maker's order id after its end"),
    ),
    rule(
        "keys follow from the attempt's own salt",
        "The salt is 32 random bytes, drawn anew for every attempt: a repeated id repeats no key.",
        swap(keys.secret_key, "seed + salt + order_id", "seed + order_id"),
        test("keys", "a_key_is_the_hash_that_the_specification_says"),
    ),
)

TRANSACTIONS = (
    rule(
        "the network's timelocks",
        "The three relative locks are parameters of the network, carried in the offer and checked by both.",
        cut(node.taker.Taker.check, "if offer.timelocks"),
        test("money_rules", "offers_that_are_old_or_of_other_rules_are_not_taken"),
    ),
    rule(
        "timelocks in order",
        "Liquidation CETs come 12 blocks before settlement CETs, and those before the refund.",
        swap(terms.Timelocks.__attrs_post_init__, "self.liquidation + 1", "1"),
        test("terms", "timelocks_are_in_order_and_fit_bip68"),
    ),
    rule(
        "one confirmation of the lock",
        "Commit and close go out once the lock has one confirmation.",
        put(observing, "LOCK_CONFIRMATIONS", 0),
        test("position", "states_of_a_whole_life_to_a_cet"),
    ),
    rule(
        "nobody follows the anchor",
        "Never subscribe to the anchor's script (the whole world shares it).",
        cut(Monitor.follow, "if"),
        test("monitor", "the_anchors_script_is_nobodys_to_follow"),
    ),
    rule(
        "a bump's size",
        "Unconfirmed outputs of ours are spent only by the bump routine (≤ 1 000 vB).",
        put(bump, "MAX_VSIZE", 100_000),
        test("money_rules", "a_bump_spends_no_more_than_fits_into_a_thousand_vbytes"),
    ),
    rule(
        "commit signatures are the receiver's to complete",
        "Commit signatures are adaptor signatures encrypted to the receiver's publish point.",
        swap(signing.verify_commit, "plan.party(signer.other)", "plan.party(signer)"),
        test("transactions", "a_commit_signature_is_the_receivers_to_complete"),
    ),
    rule(
        "native inputs",
        _INPUTS + "native P2WPKH or P2TR only.",
        cut(parties.check_scripts, "if not is_native(each.script)"),
        setup_lie("TakerContract-an input of another kind"),
    ),
    rule(
        "confirmed inputs",
        _INPUTS + "confirmed, mature.",
        cut(chain_inputs._fault, "if confirmations < needed"),
        test("broadcast", "inputs_that_cannot_be_spent"),
    ),
    rule(
        "mature inputs",
        _INPUTS + "mature.",
        put(chain_inputs, "COINBASE_MATURITY", 1),
        test("broadcast", "inputs_that_cannot_be_spent"),
    ),
    rule(
        "unspent inputs",
        _INPUTS + "unspent.",
        cut(chain_inputs._fault, "if one.outpoint not in"),
        test("broadcast", "inputs_that_cannot_be_spent"),
    ),
    rule(
        "inputs of the stated value",
        _INPUTS + "of the stated value, in our own view of the chain.",
        cut(chain_inputs._fault, "if output.nValue"),
        test("broadcast", "inputs_that_are_not_as_stated"),
    ),
    rule(
        "inputs of the stated script",
        _INPUTS + "of the stated script, in our own view of the chain.",
        cut(chain_inputs._fault, "if bytes(output.scriptPubKey)"),
        test("broadcast", "inputs_that_are_not_as_stated"),
    ),
    rule(
        "inputs are looked up",
        _INPUTS + "in our own view of the chain.",
        cut(SetupNode._check_coins, "await self._check_inputs"),
        test("setup_node", "coins_of_the_peer_are_looked_up_in_our_own_view_of_the_chain"),
    ),
    rule(
        "inputs are looked up again",
        _INPUTS + "unspent: those of the taker may have been spent while it took its time.",
        cut(contract_setup.maker, "await CheckCoins"),
        test("contract_setup", "coins_are_looked_at_again_before_the_makers_signatures_leave"),
    ),
    rule(
        "inputs of other locks",
        _INPUTS + "distinct, from those of other locks with us, too.",
        cut(SetupNode._check_unpromised, "for coin in plan"),
        test("attacks", "coins_that_a_peer_brings_into_two_locks_at_once_are_refused"),
    ),
    rule(
        "distinct inputs",
        _INPUTS + "distinct.",
        cut(parties.check_scripts, "if len({each.outpoint"),
        setup_lie("TakerContract-an input twice"),
    ),
    rule(
        "no inputs of ours",
        _INPUTS + "distinct: none of them is ours.",
        cut(parties.check_party, "if {each.outpoint"),
        setup_lie("TakerContract-an input of ours"),
    ),
    rule(
        "twenty inputs",
        _INPUTS + "at most 20 a side.",
        cut(parties.check_scripts, "if not 1 <= len(party.inputs)"),
        test("money_rules", "more_than_twenty_inputs_are_refused"),
    ),
    rule(
        "witnesses of the lock",
        _INPUTS + "their witnesses are run through a verifier before ours are added.",
        cut(contract_setup.check_lock_witnesses, "for index, witness in"),
        setup_lie("TakerLock-a bent witness"),
        setup_lie("MakerLock-a bent witness"),
        hostile("taker: a witness that is none"),
    ),
    rule(
        "a witness for each input",
        _INPUTS + "their witnesses are run through a verifier before ours are added.",
        cut(contract_setup.check_lock_witnesses, "if len(witnesses)"),
        setup_lie("TakerLock-a witness too many"),
    ),
    rule(
        "a witness signs all of the lock",
        _INPUTS + "anything malleable would void every signature.",
        swap(witness._ecdsa, "or signature[-1:] != bytes((ALL,))", ""),
        test("money_rules", "a_witness_names_the_hash_type_that_was_signed"),
    ),
    rule(
        "native payouts",
        _SCRIPTS + "P2WPKH or P2TR.",
        cut(parties.check_scripts, 'for name, script in (("change_script"'),
        setup_lie("Accepted-payout_script is P2SH"),
    ),
    rule(
        "none of our scripts, by both sides' word",
        _SCRIPTS + "none of ours.",
        swap(
            parties.check_party,
            "{own.change_script, own.payout_script, *(each.script for each in own.inputs)}",
            "set()",
        ),
        setup_lie("TakerContract-payout_script is our payout"),
    ),
    rule(
        "none of our wallet's scripts",
        _SCRIPTS + "none of ours.",
        cut(SetupNode._check_coins, "for name, scripts in"),
        test("setup_node", "coins_of_the_peer_are_looked_up_in_our_own_view_of_the_chain"),
    ),
    rule(
        "none of the contract's scripts",
        _SCRIPTS + "none of the contract's.",
        cut(parties.check_party, "taken |="),
        setup_lie("TakerContract-payout_script is the lock's"),
        setup_lie("TakerContract-payout_script is the commit's"),
    ),
    rule(
        "change and payout differ",
        _SCRIPTS + "none that leaves open which output is the payout.",
        cut(parties.check_party, "if peer.change_script == peer.payout_script"),
        setup_lie("TakerContract-change and payout are one"),
    ),
    rule(
        "inputs suffice",
        "The lock's own fee: each side its inputs and change, and half of the rest.",
        cut(parties.check_party, "try"),
        setup_lie("TakerContract-an input that pays too little"),
    ),
    rule(
        "the agreed fee rate",
        "Fees at the order's agreed rate, fixed for the position's life.",
        cut(contract_setup.taker, "if accepted.fee_rate"),
        setup_lie("Accepted-another fee rate"),
    ),
    rule(
        "a fee rate of our own view",
        "The taker refuses a rate outside [½, 3] × its own.",
        cut(SetupNode._check_fee_rate, "if not own"),
        test("setup_node", "a_fee_rate_is_taken_within_half_and_three_times_our_own"),
    ),
    rule(
        "the fee rate is asked about",
        "The taker refuses a rate outside [½, 3] × its own.",
        cut(contract_setup.taker, "await CheckFeeRate"),
        test("contract_setup", "a_fee_rate_beyond_our_own_estimate_is_refused"),
    ),
    rule(
        "a fee rate of 2",
        "Whole sat/vB, ≥ 2.",
        cut(Terms.__attrs_post_init__, '_whole("fee_rate"'),
        test("terms", "bad_terms_name_the_field[fee_rate-1]"),
    ),
    rule(
        "the maker's six-block estimate",
        "The maker sets the rate at least at its six-block estimate.",
        swap(SetupNode.fee_rate, "estimate is None", "True"),
        test("setup_node", "without_a_chain_the_default_rate_is_our_own"),
    ),
)

SIGNATURES = (
    rule(
        "adaptor: below the order",
        _ADAPTOR + "ŝ ≥ n.",
        cut(Verifier.verify, "if s >= ORDER"),
        test("adaptor", "a_scalar_has_one_encoding"),
    ),
    rule(
        "adaptor: of 65 bytes",
        _ADAPTOR + "any length but 65.",
        cut(Verifier.verify, "if len(self._key) != 32 or"),
        test("adaptor", "a_malformed_signature_is_not_valid"),
    ),
    rule(
        "adaptor: on the curve, and the nonce that was sent",
        _ADAPTOR + "not on the curve, T or R at infinity; ŝ·G = ε·(R − T) + e·P.",
        swap(Verifier.verify, "keys.serialize(total) == signature[:33]", "True"),
        test("adaptor", "a_malformed_signature_is_not_valid"),
        test("adaptor", "a_signature_is_bound_to_key_message_and_point"),
    ),
    rule(
        "adaptor: what is recovered is checked",
        "recover: t = ε·(s − ŝ), and check t·G = T.",
        cut(adaptor.recover, "if keys.pubkey_from_prvkey(secret) != point"),
        test("adaptor", "recovery_checks_what_it_finds"),
    ),
    rule(
        "adaptor: nonces follow from all that is signed",
        "Nonces are deterministic, from masked secret, x(P), T, m.",
        swap(adaptor.Signer.sign, "self._nonce_prefix + point + message", "self._nonce_prefix + message"),
        test("adaptor", "no_nonce_serves_two_messages_or_points_or_keys"),
    ),
    rule(
        "nonce: answers one nonce of the peer",
        _NONCES + "never answer a second peer nonce.",
        cut(CloseNonce.meet, "if self._met"),
        test("closing", "a_nonce_answers_one_nonce_of_the_peer"),
    ),
    rule(
        "nonce: signs once",
        _NONCES + "are consumed and wiped by the one signing call.",
        put(musig.SecretNonce, "_take", _copied),
        test("closing", "a_session_signs_once"),
    ),
    rule(
        "nonce: wiped",
        _NONCES + "live in memory only, and are wiped.",
        cut(CloseNonce.__exit__, "self._secret.wipe()"),
        test("closing", "leaving_the_block_wipes_the_nonce"),
    ),
    rule(
        "nonce: not stored",
        _NONCES + "live in memory only.",
        cut(CloseNonce.__reduce__, "raise TypeError"),
        test("closing", "a_nonce_can_be_neither_stored_nor_copied_to_sign_twice"),
    ),
    rule(
        "nonce: random",
        _NONCES + "are random.",
        swap(closing._draw, "drawn = entropy(32)", "drawn = bytes([1]) * 32"),
        test("closing", "every_nonce_draws_anew"),
    ),
    rule(
        "nonce: bound to message and lock",
        _NONCES + "are bound to (peer nonce, message, lock).",
        swap(closing._draw, "point, close.message, ffi.NULL", "point, ffi.NULL, ffi.NULL"),
        test("closing", "two_closes_share_no_nonce_even_when_chance_repeats_itself"),
    ),
    rule(
        "partial signatures",
        "Partial signatures from the peer are verified.",
        cut(CloseSession.verify, "if not valid"),
        test("closing", "a_partial_signature_that_is_not_the_peers_is_refused"),
        settlement_lie("MakerPartial-signature is bent"),
    ),
    rule(
        "the maker verifies before it signs",
        "Partial signatures from the peer are verified.",
        cut(settlement._maker_close, "session.verify(answer.signature)"),
        settlement_lie("TakerPartial-signature is bent"),
    ),
    rule(
        "signatures of a spend",
        "Signature of the cooperative spend: verified before ours leaves.",
        cut(Spend.verify, "if not schnorr.verify"),
        test("closing", "the_signature_of_a_spend_is_checked_and_can_be_made_again"),
    ),
    rule(
        "the same close",
        "Accepted{nonce, close txid}: peers that hold different contracts find out.",
        cut(settlement.taker_close, "if accepted.close_txid"),
        settlement_lie("AcceptClose-txid is another"),
        test("settlement", "two_sides_that_hold_different_contracts_find_out"),
        hostile("maker: another close"),
    ),
    rule(
        "refund signatures",
        "The peer's refund and CET signatures are verified.",
        cut(signing.verify_contract, "if not schnorr.verify"),
        setup_lie("MakerContract-refund signature is bent"),
        hostile("taker: a wrong refund signature"),
    ),
    rule(
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
    rule(
        "as many as there are CETs",
        "CET signatures are one byte string per event, in the order of the locally generated CETs.",
        swap(signing.verify_contract, "len(joined) != adaptor.SIZE * len(outcomes)", "len(joined) % adaptor.SIZE"),
        setup_lie("MakerContract-a CET signature is missing"),
        setup_lie("MakerContract-a CET signature too many"),
    ),
)

REFUSALS = {
    "numbers": NUMBERS,
    "identity": IDENTITY,
    "transactions": TRANSACTIONS,
    "signatures": SIGNATURES,
}
