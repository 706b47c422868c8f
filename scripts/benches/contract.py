"""What a contract costs: CETs, bytes on the wire, milliseconds of one core.

The contract is the worked one: 3 500 at 54 000, long ×5, short ×1, 24 hourly events. The reference is the older kind
of system: the payout curve in 200 equal pieces, 1 657 CETs, each with an ECDSA adaptor signature of 162 bytes that
takes secp256k1-zkp 121 µs to make and 151 µs to check. No published wheel carries that library, so these times are
another run's, scaled by what a multiplication of the base point takes here (there 21 µs).
"""

import time
from collections.abc import Callable, Iterator

from btclib_secp256k1 import keys

from protocols.contract import signing
from protocols.contract.oracle import DLC, OLIVIA
from protocols.contract.outcomes import measure, outcomes
from protocols.contract.terms import Role
from scripts.benches import Figure, summary
from tests.contracts import WORKED, equal_steps
from tests.deals import Deal, deal

EVENTS = 24
ROUNDS = 15
REFERENCE_CETS, REFERENCE_BYTES = 1_657, 162
MAKE, CHECK, BASE_MULTIPLICATION = 121, 151, 21
"""Microseconds, of the same run."""
REFERENCE = "1 657 ECDSA adaptor signatures"


def figures() -> Iterator[Figure]:
    reference_ms = REFERENCE_CETS / 1_000 * _base_multiplication() / BASE_MULTIPLICATION
    for steps, terms in (("0.69 % steps", equal_steps(WORKED, "0.0069")), ("default tolerance", WORKED)):
        size = measure(terms, EVENTS)
        yield Figure(f"settlement CETs, {steps}", size.settlement_cets, "CETs", REFERENCE_CETS, "200 equal pieces")
        yield Figure(f"liquidation CETs, {steps}", size.liquidation_cets, "CETs")
        yield Figure(f"signatures, {steps}", size.wire_bytes, "bytes", REFERENCE_CETS * REFERENCE_BYTES, REFERENCE)
        yield Figure(f"worst rounding, {steps}", size.worst_error / terms.pool * 100, "% of the pool")

        for scheme in (DLC, OLIVIA):
            contract = deal(terms, events=EVENTS, scheme=scheme)
            points, sign, verify = zip(*[_round(contract) for _ in range(ROUNDS)], strict=True)
            both = [one + two for one, two in zip(sign, verify, strict=True)]
            for name, milliseconds, microseconds in (
                ("points, built ahead", points, None),
                ("sign", sign, MAKE),
                ("verify", verify, CHECK),
                ("sign + verify", both, MAKE + CHECK),
            ):
                ours = summary(milliseconds)
                reference = microseconds and microseconds * reference_ms
                name_of_reference = f"{REFERENCE} (scaled)" if reference else ""
                full_name = f"{name}, {scheme.name}, {steps}"
                yield Figure(full_name, ours.median, "ms", reference, name_of_reference, ours.spread)


def _round(contract: Deal) -> tuple[float, float, float]:
    """Milliseconds that one side spends on the oracle's points, on signing, and on verifying what the other signed.

    The points belong to the hourly events and wait for any contract; everything else is done anew.
    """
    plan = contract.plan

    def points() -> None:
        for each in outcomes(plan.terms, EVENTS):
            signing.anticipation(plan.announcements[each.event]).point(each.digits)

    def sign(role: Role) -> signing.Signatures:
        return signing.sign_contract(plan, role, contract.keys[role].fund)

    signing.anticipation.cache_clear()
    ahead = _milliseconds(points)
    theirs = sign(Role.MAKER)
    signing.transactions_of.cache_clear()
    signed = _milliseconds(lambda: sign(Role.TAKER))
    verified = _milliseconds(lambda: signing.verify_contract(plan, Role.MAKER, theirs))
    return ahead, signed, verified


def _base_multiplication() -> float:
    """Microseconds."""
    secrets = [number.to_bytes(32, "big") for number in range(1, 1_001)]
    return min(_milliseconds(lambda: [keys.pubkey_from_prvkey(each) for each in secrets]) for _ in range(9))


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1_000
