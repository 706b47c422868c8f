"""Both sides of a contract, and its oracle, for tests: all keys follow from names."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import sha256

from attrs import evolve, frozen
from btclib_secp256k1 import xonly

from protocols.contract.funding import FundingInput
from protocols.contract.keys import AttemptKeys, attempt_keys
from protocols.contract.oracle import (
    OLIVIA,
    Announcement,
    Attestation,
    Scheme,
    opening_scalar,
    parse_announcement,
    parse_attestation,
)
from protocols.contract.outcomes import Outcome
from protocols.contract.scripts import p2tr
from protocols.contract.terms import SYMBOL, Role, Terms
from protocols.contract.transactions import ContractPlan, Party

ORDER_ID = bytes(range(16))
FIRST_EVENT = 1_790_002_800


def digest(*name: object) -> bytes:
    """32 bytes that follow from a name; as good as random."""
    return sha256(repr(name).encode()).digest()


def x_only(secret: bytes) -> bytes:
    return xonly.from_prvkey(secret)[0]


def p2tr_of(*name: object) -> bytes:
    """A P2TR script whose output key's secret is `digest(*name)`."""
    return p2tr(x_only(digest(*name)))


ATTESTATION_SECRET, ANNOUNCEMENT_SECRET = digest("attestation key"), digest("announcement key")


def _nonces(event_id: str) -> list[bytes]:
    return [digest("nonce", event_id, index) for index in range(20)]


@lru_cache
def announcement(event: int, scheme: Scheme = OLIVIA, symbol: str = SYMBOL) -> Announcement:
    """The announcement of the event `event` hours after the first."""
    event_id = scheme.event_id(symbol, FIRST_EVENT + 3600 * event)
    return parse_announcement(
        scheme.announce(event_id, _nonces(event_id), ATTESTATION_SECRET, ANNOUNCEMENT_SECRET),
        announcement_key=x_only(ANNOUNCEMENT_SECRET),
        attestation_key=x_only(ATTESTATION_SECRET),
        scheme=scheme.name,
    )


def attestation(event: int, price: int, scheme: Scheme = OLIVIA, symbol: str = SYMBOL) -> Attestation:
    announced = announcement(event, scheme, symbol)
    body = scheme.attest(announced.id, _nonces(announced.id), ATTESTATION_SECRET, ANNOUNCEMENT_SECRET, price)
    attested = parse_attestation(body, announced)
    assert attested is not None
    return attested


def opening(outcome: Outcome, price: int | None = None, scheme: Scheme = OLIVIA, symbol: str = SYMBOL) -> bytes:
    """The scalar that the oracle gives away for an outcome when it attests `price` (default: the outcome's lowest)."""
    attested = attestation(outcome.event, outcome.low if price is None else price, scheme, symbol)
    return opening_scalar(attested, announcement(outcome.event, scheme, symbol), outcome.digits)


@frozen
class Deal:
    """A plan and both sides' keys."""

    plan: ContractPlan
    keys: Mapping[Role, AttemptKeys]


def coin(role: Role) -> FundingInput:
    """A made-up coin worth 0.1 BTC."""
    return FundingInput(digest("coin", role), 0, 10_000_000, p2tr_of("coin key", role))


def keys_of(role: Role, attempt: int) -> AttemptKeys:
    return attempt_keys(
        digest("seed", role, 0) + digest("seed", role, 1),
        setup_salt=digest("salt", role, 0),
        salt=digest("salt", role, attempt),
        order_id=ORDER_ID,
        index=attempt,
    )


def deal(
    terms: Terms,
    *,
    attempt: int = 0,
    events: int = 2,
    scheme: Scheme = OLIVIA,
    coins: Callable[[Role], FundingInput] = coin,
    payout: Callable[[Role], bytes] = lambda role: p2tr_of("payout", role),
    change: Callable[[Role], bytes] = lambda role: p2tr_of("change", role),
) -> Deal:
    """A contract of one coin a side; `attempt` > 0 is a rollover of the same position."""
    keys = {role: keys_of(role, attempt) for role in Role}
    maker, taker = (Party(keys[role].points, (coins(role),), change(role), payout(role)) for role in Role)
    announcements = tuple(announcement(event, scheme, terms.symbol) for event in range(events))
    return Deal(ContractPlan(ORDER_ID, attempt, terms, maker, taker, announcements), keys)


def with_inputs(plan: ContractPlan, maker: tuple[FundingInput, ...], taker: tuple[FundingInput, ...]) -> ContractPlan:
    return evolve(plan, maker=evolve(plan.maker, inputs=maker), taker=evolve(plan.taker, inputs=taker))
