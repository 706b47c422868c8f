"""The keys of one attempt at a contract: derived anew for each attempt, checked before they are used.

Source: contract.md, "Identity and keys" and "Byte level". Scalars are 32 bytes, points 33 (compressed).
"""

from collections.abc import Collection, Iterable
from typing import Literal

from attrs import field, frozen
from btclib_secp256k1 import keys as curve
from btclib_secp256k1 import musig

from ..errors import RemoteProtocolError
from .numbers import ORDER, tagged_hash

Purpose = Literal["fund", "publish", "revoke"]
SEED_SIZE, SALT_SIZE, ORDER_ID_SIZE = 64, 32, 16


@frozen
class Points:
    """What the peer sees of an attempt's keys: three compressed points."""

    fund: bytes
    publish: bytes
    """Completing the peer's commit signature with its secret publishes the secret."""
    revoke: bytes
    """Its secret is handed over when the commit is superseded."""

    def each(self) -> tuple[tuple[Purpose, bytes], ...]:
        return (("fund", self.fund), ("publish", self.publish), ("revoke", self.revoke))


@frozen
class AttemptKeys:
    """The three secret keys of one attempt."""

    fund: bytes = field(repr=False)
    publish: bytes = field(repr=False)
    revoke: bytes = field(repr=False)

    @property
    def points(self) -> Points:
        return Points(
            curve.pubkey_from_prvkey(self.fund),
            curve.pubkey_from_prvkey(self.publish),
            curve.pubkey_from_prvkey(self.revoke),
        )


def hash_scalar(tag: str, data: bytes) -> bytes:
    """tagged_hash(tag, data) modulo the group's order, as 32 bytes; zero is refused with `ValueError`."""
    scalar = int.from_bytes(tagged_hash(tag, data), "big") % ORDER
    if scalar == 0:
        raise ValueError("a hash of zero is no scalar")
    return scalar.to_bytes(32, "big")


def secret_key(seed: bytes, salt: bytes, order_id: bytes, index: int, purpose: Purpose) -> bytes:
    """One secret of an attempt: tagged_hash("cfd/key", seed ‖ salt ‖ order id ‖ index ‖ purpose) mod n.

    The salt is drawn anew for every attempt, so that a repeated order id or a retried rollover repeats no key.
    """
    for name, value, size in (
        ("seed", seed, SEED_SIZE),
        ("salt", salt, SALT_SIZE),
        ("order id", order_id, ORDER_ID_SIZE),
    ):
        if len(value) != size:
            raise ValueError(f"the {name} has {size} bytes, not {len(value)}")
    return hash_scalar("cfd/key", seed + salt + order_id + index.to_bytes(4, "big") + purpose.encode("ascii"))


def attempt_keys(seed: bytes, *, setup_salt: bytes, salt: bytes, order_id: bytes, index: int) -> AttemptKeys:
    """The keys of attempt `index` (0 is the setup, where both salts are one): `fund` stays the setup's."""
    return AttemptKeys(
        fund=secret_key(seed, setup_salt, order_id, 0, "fund"),
        publish=secret_key(seed, salt, order_id, index, "publish"),
        revoke=secret_key(seed, salt, order_id, index, "revoke"),
    )


def key_sort(points: Iterable[bytes]) -> list[bytes]:
    """BIP327's KeySort: compressed points in lexicographic order."""
    return sorted(points)


def key_agg(points: Iterable[bytes]) -> bytes:
    """BIP327's KeyAgg of compressed points in the order given: the aggregate key's 32-byte x coordinate.

    Raises `ValueError` for a point that is not on the curve.
    """
    return musig.KeyAggCache(list(points)).agg_pubkey


def contract_id(order_id: bytes, maker_fund: bytes, taker_fund: bytes) -> bytes:
    """tagged_hash("cfd/contract", order id ‖ maker's fund point ‖ taker's fund point)."""
    return tagged_hash("cfd/contract", order_id + maker_fund + taker_fund)


def negated(point: bytes) -> bytes:
    """The compressed point with the same x and the other y."""
    return bytes((point[0] ^ 1,)) + point[1:]


def check_points(ours: Points, theirs: Points, seen: Collection[bytes]) -> None:
    """Refuse points of the peer that could repeat a key, cancel one out, or are none.

    `seen` holds every point that took part in any attempt of any position, ours included (a set); at a rollover,
    whose fund points stay, leave out this position's own two. A point and its negative have one x, which is all
    that scripts know: they count as one. Raises `RemoteProtocolError` "bad_point".
    """
    own = {point for _, point in ours.each()}
    earlier: set[bytes] = set()
    for name, point in theirs.each():
        if len(point) != 33 or not curve.pubkey_verify(point):
            raise _bad_point(name, point, "a compressed point on the curve")
        for other, allowed in (
            (own, "a point that is not one of ours: the peer has our keys, or returns them"),
            (earlier, "three different points"),
            (seen, "a point that took part in no earlier attempt"),
        ):
            if point in other or negated(point) in other:
                raise _bad_point(name, point, allowed)
        earlier.add(point)
    # equal x of publish and revoke was refused above, so that their sum is never infinity


def _bad_point(name: Purpose, point: bytes, allowed: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad_point", f"{name} is {point[:33].hex()}, allowed is {allowed}")


def check_revocation(point: bytes, secret: bytes) -> None:
    """A revocation counts only when its secret belongs to the revoke point that was agreed on.

    Raises `RemoteProtocolError` "bad_revocation" (the secret is not repeated in it).
    """
    if not curve.prvkey_verify(secret) or curve.pubkey_from_prvkey(secret) != point:
        raise RemoteProtocolError("bad_revocation", f"the secret sent is not that of revoke point {point.hex()}")
