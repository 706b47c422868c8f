"""What a contract costs: CETs, bytes on the wire, milliseconds of one core (contract.md, "From payout curve to CETs").

The contract is the worked one: 3 500 at 54 000, long ×5, short ×1, 24 hourly events. The reference is the older kind
of system: the payout curve in 200 equal pieces, 1 657 CETs of which each takes an ECDSA adaptor signature of 162
bytes, 121 µs to make and 151 µs to check with secp256k1-zkp. No published wheel carries that library, so these two
are figures from another run; they are scaled by a multiplication of the base point, 21 µs in that run, measured in this one.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator

from btclib_secp256k1 import keys

from protocols.contract import signing
from protocols.contract.outcomes import measure, outcomes
from protocols.contract.terms import Role, Terms
from tests.contracts import WORKED, equal_steps
from tests.deals import Deal, deal

EVENTS = 24
ROUNDS = 15
REFERENCE_CETS = 1_657
REFERENCE_BYTES = 162
REFERENCE_MICROSECONDS = {"sign": 121, "verify": 151}
BASE_MULTIPLICATION_MICROSECONDS = 21

Figure = dict[str, str | float]


def figures() -> Iterator[Figure]:
    """One after another, as `scripts/bench contract` prints them; `spread` is that of the rounds, in `unit`."""
    scale = _base_multiplication() / BASE_MULTIPLICATION_MICROSECONDS
    for case, terms in (
        ("steps of 0.69 % of the pool", equal_steps(WORKED, "0.0069")),
        ("default tolerance", WORKED),
    ):
        size = measure(terms, EVENTS)
        yield _figure(f"settlement CETs, {case}", size.settlement_cets, "CETs", REFERENCE_CETS, "200 equal pieces")
        yield _figure(f"liquidation CETs, {case}", size.liquidation_cets, "CETs")
        yield _figure(
            f"signatures, {case}", size.wire_bytes, "bytes", REFERENCE_CETS * REFERENCE_BYTES, "ECDSA adaptor, 1 657"
        )
        yield _figure(f"worst rounding, {case}", size.worst_error / terms.pool * 100, "% of the pool")
        yield from _times(case, terms, scale)


def _times(case: str, terms: Terms, scale: float) -> Iterator[Figure]:
    contract = deal(terms, events=EVENTS)
    rounds = [_round(contract) for _ in range(ROUNDS)]
    for name in rounds[0]:
        milliseconds = [each[name] for each in rounds]
        ours, spread = statistics.median(milliseconds), statistics.stdev(milliseconds)
        microseconds = sum(cost for part, cost in REFERENCE_MICROSECONDS.items() if part in name)
        reference = REFERENCE_CETS * microseconds * scale / 1_000 or None
        yield _figure(f"{name}, {case}", ours, "ms", reference, "ECDSA adaptor, 1 657", spread=spread)


def _round(contract: Deal) -> dict[str, float]:
    """What one side spends on one contract, in milliseconds; nothing is left over from the round before."""
    signing.transactions_of.cache_clear()
    signing.anticipation.cache_clear()
    plan = contract.plan

    def points() -> None:
        for each in outcomes(plan.terms, EVENTS):
            signing.anticipation(plan.announcements[each.event]).point(each.digits)

    def sign(role: Role) -> signing.Signatures:
        return signing.sign_contract(plan, role, contract.keys[role].fund)

    ahead = _milliseconds(points)
    theirs = sign(Role.MAKER)
    signing.transactions_of.cache_clear()
    # the taker's side: it signs, then checks what the maker signed
    made = _milliseconds(lambda: sign(Role.TAKER))
    checked = _milliseconds(lambda: signing.verify_contract(plan, Role.MAKER, theirs))
    return {
        "points, built ahead": ahead,
        "sign": made,
        "verify": checked,
        "sign + verify": made + checked,
    }


def _base_multiplication() -> float:
    """Microseconds."""
    secrets = [number.to_bytes(32, "big") for number in range(1, 2_001)]
    return min(_milliseconds(lambda: [keys.pubkey_from_prvkey(each) for each in secrets]) for _ in range(5)) / 2


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1_000


def _figure(
    name: str,
    ours: float,
    unit: str,
    reference: float | None = None,
    reference_name: str = "",
    *,
    spread: float = 0,
) -> Figure:
    figure: Figure = {
        "bench": "contract",
        "name": name,
        "ours": round(ours, 3),
        "unit": unit,
        "spread": round(spread, 3),
    }
    if reference is not None:
        figure |= {
            "reference": round(reference, 3),
            "reference_name": reference_name,
            "ratio": round(ours / reference, 3),
        }
    return figure


if __name__ == "__main__":
    for each in figures():
        print(json.dumps(each, ensure_ascii=False))
