"""What oracle and peer say, and what is refused of it (contract.md, domain.md): each check to be taken out."""

from __future__ import annotations

import node.oracle.client
import node.oracle.contradictions
import node.prices
import node.taker
from node.oracle.client import OracleClient
from node.position import rolling as position_rolling
from node.position.commands import begin_attempt
from node.prices import Feed
from node.rollover import RolloverNode
from node.settlement import SettlementNode
from node.setup import SetupNode
from protocols import contract_setup, positions, rollover, settlement
from protocols.contract import (
    announcements,
    oracle,
    outcomes,
    rolling,
    schedule,
)
from protocols.contract.dlc import Dlc
from protocols.contract.olivia import Olivia
from protocols.offers import Offer
from tests.simulation.removal import cut, put, swap, together
from tests.simulation.rules import rule
from tests.simulation.witnesses import (
    refused,
    rollover_lie,
    settlement_lie,
    setup_lie,
    test,
)

_POINTS = "Refuse: "
_EVENTS = "The maker lists the events, the taker checks these properties: "
_ANNOUNCED = "Verify announcements (signature, nonce count, base, time): "

ORACLE = (
    rule(
        "announcement: signed (dlc)",
        _ANNOUNCED + "signature.",
        cut(Dlc._check, "if not schnorr.verify"),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    rule(
        "announcement: our oracle's key (dlc)",
        _ANNOUNCED + "signature.",
        cut(Dlc._check, "if signed.key"),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    rule(
        "announcement: nonce count (dlc)",
        _ANNOUNCED + "nonce count.",
        swap(Dlc._check, "len(event.nonces), DIGITS),", "DIGITS, DIGITS),"),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    rule(
        "announcement: base (dlc)",
        _ANNOUNCED + "base.",
        swap(Dlc._check, '("base", said.base, 2)', '("base", 2, 2)'),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    rule(
        "announcement: time (dlc)",
        _ANNOUNCED + "time.",
        cut(Dlc.parse_announcement, "if signed.event.maturity"),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    rule(
        "announcement: distinct nonces (dlc)",
        "A nonce used twice, or the key itself as one, gives the key away.",
        cut(Dlc._check, "if len({*event.nonces"),
        test("dlc", "announcements_are_checked_in_full"),
    ),
    rule(
        "announcement: signed (olivia)",
        _ANNOUNCED + "signature.",
        cut(Olivia._announcement, "if not ssa.verify"),
        test("oracle", "an_answer_that_is_none"),
        test("oracle", "another_oracles_announcement_is_refused"),
    ),
    rule(
        "announcement: base (olivia)",
        _ANNOUNCED + "base.",
        cut(Olivia._announcement, '_equal("descriptor.base"'),
        test("oracle", "what_is_signed_is_checked_in_full"),
    ),
    rule(
        "announcement: time (olivia)",
        _ANNOUNCED + "time.",
        cut(Olivia._announcement, '_equal("expected-outcome-time"'),
        test("oracle", "what_is_signed_is_checked_in_full"),
    ),
    rule(
        "announcement: nonce count and distinct nonces (olivia)",
        _ANNOUNCED + "nonce count.",
        cut(Olivia._announcement, "if len({*nonces"),
        test("oracle", "what_is_signed_is_checked_in_full"),
    ),
    rule(
        "announcement: nonces of different events",
        "What opens a digit of one event would open it in the other.",
        cut(announcements.check_nonces, "for announcement in announcements"),
        test("contract_setup", "an_oracle_that_uses_a_nonce_twice_settles_nothing"),
    ),
    rule(
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
    rule(
        "the olivia combination",
        "Plainly summed, olivia-v1 is forgeable: therefore weigh each digit.",
        swap(Olivia.weight, "_weights(announcement.key, announcement.nonces)[index]", "1"),
        test("oracle", "weights_open_nothing_by_any_scaling"),
    ),
    rule(
        "a second announcement",
        "A second announcement for an id is refused.",
        cut(OracleClient._differs, "return WorldError("),
        test("oracle_client", "a_second_announcement_is_refused"),
    ),
    rule(
        "another event's announcement",
        "Verify announcements.",
        cut(OracleClient._parse, "if announcement.id != event"),
        test("oracle_client", "the_announcement_of_another_event_is_refused"),
    ),
    rule(
        "answers are kept for ever",
        "Keep raw bytes for ever.",
        cut(OracleClient.announcement, "await self._store.put("),
        test("oracle_client", "an_announcement_is_fetched_once_and_kept_as_it_came"),
    ),
    rule(
        "two attestations: the first counts",
        "Two different attestations: act on the first verified one.",
        together(
            cut(OracleClient.attestation, "if known is not None"),
            swap(OracleClient.attestation, "await self._store.get(Kind.ATTESTATION, announcement.id)", "None"),
        ),
        test("contradictions", "the_first_attestation_is_kept_and_stands_after_a_restart"),
    ),
    rule(
        "two attestations: the alarm",
        "Two different attestations: raise the alarm, export the proof.",
        cut(OracleClient._weigh, "if found is not None"),
        test("contradictions", "asking_again_finds_out"),
    ),
    rule(
        "two attestations: no setup with that oracle",
        "Stop using that oracle.",
        cut(SetupNode.check_oracle, "with self.oracle.lent()"),
        test("oracle_watch", "both_sides_notice_and_the_contract_settles_at_the_first_price"),
    ),
    rule(
        "two attestations: no rollover with that oracle",
        "Stop using that oracle.",
        together(
            cut(RolloverNode._check_in_time, "self.setup.check_oracle()"),
            cut(SetupNode._announcements, "self.check_oracle()"),
        ),
        test("money_rules", "nothing_is_rolled_over_with_an_oracle_that_said_two_things"),
    ),
    rule(
        "two attestations: no signature of the lock",
        "Stop using that oracle.",
        cut(SetupNode._sign_lock, "self.check_oracle()"),
        test("oracle_watch", "both_sides_notice_and_the_contract_settles_at_the_first_price"),
    ),
    rule(
        "the same announcements (setup)",
        "Peers compare a hash of the announcements used.",
        cut(contract_setup.taker, "if accepted.announcements_hash"),
        setup_lie("Accepted-other announcements"),
    ),
    rule(
        "the same announcements (rollover)",
        "Peers compare a hash of the announcements used.",
        cut(rollover._agree, "if said.announcements_hash"),
        rollover_lie("maker RolloverTerms-other announcements"),
    ),
    rule(
        "the configured oracle",
        "The offer names the oracle that settles.",
        cut(node.taker.Taker.check, "if offer.oracle"),
        test("money_rules", "offers_that_are_old_or_of_other_rules_are_not_taken"),
    ),
)

EVENTS = (
    rule(
        "events: hourly",
        _EVENTS + "hourly without gap.",
        cut(schedule.check_events, "if any(later - earlier"),
        setup_lie("Accepted-an event is missing"),
    ),
    rule(
        "events: the first",
        _EVENTS + "the first is the first full hour later than now + 2 min (one hour's slack).",
        cut(schedule.check_events, "if not earliest <="),
        setup_lie("Accepted-the first events left out"),
    ),
    rule(
        "events: the last",
        _EVENTS + "the last one settles, within [now + 23 h, now + 25 h].",
        cut(schedule.check_events, "if not asked_at"),
        setup_lie("Accepted-the last event too early"),
    ),
    rule(
        "events: full hours",
        _EVENTS + "full hours.",
        cut(schedule.check_events, "if times[0] % HOUR"),
        test("money_rules", "events_are_on_full_hours"),
    ),
    rule(
        "events: the symbol's",
        _EVENTS + "of the contract's symbol.",
        cut(schedule.check_events, "if set(symbols)"),
        test("symbols", "a_maker_that_lists_events_of_another_symbol_is_refused"),
    ),
    rule(
        "events: two minutes",
        _EVENTS + "later than now + 2 min.",
        put(schedule, "LEAD", 0),
        test("money_rules", "the_first_event_is_more_than_two_minutes_away"),
    ),
    rule(
        "events: not decided while we sign (setup)",
        "Its outcome is not known while the contract is signed.",
        cut(SetupNode._sign_lock, "await self.check_undecided"),
        test("attacks", "a_contract_that_was_decided_while_the_peer_took_its_time_is_not_signed"),
    ),
    rule(
        "regions are moved inward",
        "Liquidation regions, moved inward to a multiple of 256.",
        swap(outcomes._edges, "-(-payout.saturated // step) * step", "payout.saturated"),
        test("outcomes", "liquidation_regions_are_what_the_specification_says"),
    ),
    rule(
        "early events carry regions alone",
        "The hourly events before expiry carry the prefixes of these regions only.",
        swap(
            outcomes.outcomes,
            "regions = liquidation_regions(terms)",
            "regions = [\n"
            "        Outcome(each.event, each.digits, each.low, each.high, each.long, settlement=False)\n"
            "        for each in settlement_outcomes(terms)\n"
            "    ]",
        ),
        test("outcomes", "events_but_the_last_carry_the_regions_alone"),
    ),
    rule(
        "fine payouts",
        "Tolerance in satoshis is a parameter of the offer: a coarse one could be the maker's gain.",
        cut(node.taker.check_fineness, "for name, most in"),
        test("attacks", "steps_so_coarse_that_one_of_them_is_the_makers_gain_are_refused"),
    ),
)

SAID = (
    rule(
        "offer: not stale",
        "An offer is stale 10 min after the maker's timestamp.",
        cut(node.taker.Taker.check, "if offer.stale"),
        test("money_rules", "offers_that_are_old_or_of_other_rules_are_not_taken"),
    ),
    rule(
        "offer: by its age",
        "An offer is stale 10 min after the maker's timestamp.",
        swap(Offer.stale, "now <= self.created + STALE_AFTER", "now"),
        test("ping_identify_offers", "an_offer_is_stale_after_ten_minutes_and_before_its_time"),
    ),
    rule(
        "order: lots and sizes",
        "Sizes, lots are checked.",
        cut(Offer.check_order, "if quantity % self.lot"),
        setup_lie("PlaceOrder-quantity is no lot"),
        setup_lie("PlaceOrder-quantity above the limit"),
    ),
    rule(
        "order: leverage",
        "Leverage offered is checked.",
        cut(Offer.check_order, "if leverage not in"),
        setup_lie("PlaceOrder-leverage not offered"),
    ),
    rule(
        "order: the price seen",
        "A different price is refused.",
        cut(contract_setup.maker, "if placed.price"),
        setup_lie("PlaceOrder-price is another"),
    ),
    rule(
        "a quote is stale",
        "2 min old: no offer priced from it, no close at it.",
        swap(Feed.problem, "self._clock.now() <= self.stale_at", "True"),
        test("desk", "nothing_is_closed_at_a_quote_older_than_two_minutes"),
    ),
    rule(
        "close: the user's limit",
        "Closing price bounded by the user.",
        cut(settlement.taker_close, "if contract.closing is None:\n            await CheckClose"),
        test("settlement", "the_taker_looks_at_the_price_before_it_proposes_and_before_it_signs"),
    ),
    rule(
        "close: the maker looks again",
        "The maker looks at the price just before its signature: the taker may have waited for a better moment.",
        cut(settlement._maker_close, "if contract.closing is None:\n            await CheckClose"),
        test("settlement", "the_maker_looks_at_the_price_before_it_signs"),
    ),
    rule(
        "close: the maker decides",
        "Settlements by policy or by hand.",
        cut(settlement._maker_close, "if refusal is not None"),
        test("settlement", "the_makers_decision_is_final"),
    ),
    rule(
        "rollover: rates",
        "Bounds on rates that a taker accepts at rollover come from its configuration.",
        cut(rollover._check_terms, "if abs(rate)"),
        rollover_lie("maker RolloverTerms-rate beyond our bound"),
        test("rollover", "the_taker_bounds_the_rate_as_it_is_told"),
    ),
    rule(
        "rollover: the bound by default",
        "At most max(10 × |opening rate|, 0.1 %) and never above 0.5 % per 24 h.",
        swap(rolling.default_rate_bound, ", RATE_MOST)", ", 1)"),
        test("rollover", "the_default_bound_on_rates"),
    ),
    rule(
        "rollover: funding",
        "Each peer keeps its own account and checks what the counterparty claims.",
        cut(rollover._check_terms, "if said.funding_to_maker"),
        rollover_lie("maker RolloverTerms-a satoshi more"),
    ),
    rule(
        "rollover: account",
        "Each peer keeps its own account and checks what the counterparty claims.",
        cut(rollover._check_terms, "if said.maker_account"),
        rollover_lie("maker RolloverTerms-another account"),
    ),
    rule(
        "rollover: the price",
        "Reference, at rollover the price in the terms: the taker checks it within 2 % of its own feed.",
        cut(rollover._check_terms, "if not low <="),
        rollover_lie("maker RolloverTerms-price more than 2 % above our feed"),
    ),
    rule(
        "rollover: a later expiry",
        "A rollover owes the whole hours by which expiry moves (> 0).",
        cut(rollover._agree, "if hours <= 0"),
        test("rollover", "an_expiry_that_does_not_move_is_none"),
    ),
    rule(
        "rollover: the maker's points",
        _POINTS + "points.",
        cut(rollover._agree, "await _check_points"),
        rollover_lie("maker RolloverTerms-publish at infinity"),
        test("rollover", "a_point_that_was_seen_before_is_refused"),
    ),
    rule(
        "rollover: the taker's points",
        _POINTS + "points.",
        cut(rollover._offer, "await _check_points"),
        rollover_lie("taker ProposeRollover-publish at infinity"),
    ),
    rule(
        "the peer's key (rollover)",
        "The peer's key against the position's counterparty.",
        cut(position_rolling._check_peer, "if position.peer"),
        test("position_rolling", "nobody_else_rolls_a_position_over"),
    ),
    rule(
        "the peer's key (settlement)",
        "The peer's key against the position's counterparty.",
        swap(SettlementNode.find, "or position.peer != peer", ""),
        test("settlement_node", "a_stranger_learns_nothing_of_a_position"),
    ),
    rule(
        "spend: out in our own view",
        "A commit in no block must never be spent together: once revoked, it could be published with the spend.",
        cut(settlement._maker_spend, "if contract is None or"),
        test("settlement", "a_commit_that_is_not_out_is_never_spent_together"),
    ),
    rule(
        "spend: the event that counts",
        "Outputs are those of the CET that covers the attested price, earliest attested region first.",
        cut(settlement._maker_spend, "if proposed.event_id"),
        settlement_lie("ProposeSpend-event is another"),
        test("settlement", "peers_that_know_of_different_events_find_out"),
    ),
)

NETWORK = (
    rule(
        "peer: of the setup",
        "The peer's key against the position's counterparty.",
        swap(begin_attempt, "not position.version or position.peer != peer", "False"),
        refused("an attempt with another peer"),
    ),
    rule(
        "peer: of the rollover",
        "The peer's key against the position's counterparty.",
        swap(RolloverNode.maker, "(position.peer, position.role) != (peer, Role.MAKER)", "False"),
        test("rollover_node", "nobody_but_its_taker_rolls_a_position_over"),
    ),
    rule(
        "one rollover of a position at a time",
        "One attempt, one pair of points, one set of terms.",
        cut(RolloverNode._take, "if order_id in"),
        test("rollover_node", "a_position_rolls_over_once_at_a_time"),
    ),
    rule(
        "a higher index counts only with proof",
        "{index, commit transaction, our own signature on it, its publish point}; then we are recovered.",
        cut(positions.verify_proof, "if not adaptor.verify"),
        test("positions_protocol", "what_was_not_signed_is_not_proven"),
    ),
    rule(
        "what is proven is a commit of this position",
        "{index, commit transaction, our own signature on it, its publish point}; then we are recovered.",
        cut(positions.verify_proof, "if proof.commit != expected"),
        test("positions_protocol", "what_was_not_signed_is_not_proven"),
    ),
)
