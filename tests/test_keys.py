"""contract.md, "Identity and keys": derivation, what is refused of a peer's points, revocations."""

from collections.abc import Callable
from hashlib import sha256

import pytest
from attrs import evolve
from btclib_secp256k1 import keys as curve
from hypothesis import given
from hypothesis import strategies as st

from protocols.contract.keys import (
    AttemptKeys,
    Points,
    attempt_keys,
    check_points,
    check_revocation,
    contract_id,
    key_agg,
    key_sort,
    negated,
    secret_key,
)
from protocols.contract.numbers import ORDER
from protocols.contract.terms import Role
from protocols.errors import RemoteProtocolError

from .deals import ORDER_ID, digest, keys_of

SEED, SALT = digest("seed", 0) + digest("seed", 1), digest("salt")
OURS = keys_of(Role.MAKER, 0).points
THEIRS = keys_of(Role.TAKER, 0).points


def test_a_key_is_the_hash_that_the_specification_says() -> None:
    tag = sha256(b"cfd/key").digest()
    expected = sha256(tag + tag + SEED + SALT + ORDER_ID + b"\x00\x00\x01\x02" + b"publish").digest()
    secret = secret_key(SEED, SALT, ORDER_ID, 0x102, "publish")
    assert int.from_bytes(secret, "big") == int.from_bytes(expected, "big") % ORDER


def test_the_contract_id_is_the_hash_that_the_specification_says() -> None:
    tag = sha256(b"cfd/contract").digest()
    expected = sha256(tag + tag + ORDER_ID + OURS.fund + THEIRS.fund).digest()
    assert contract_id(ORDER_ID, OURS.fund, THEIRS.fund) == expected


def test_a_new_attempt_has_new_keys_but_the_setups_fund_key() -> None:
    first, second, retried = (
        attempt_keys(SEED, setup_salt=SALT, salt=salt, order_id=ORDER_ID, index=index)
        for salt, index in ((SALT, 0), (digest("another"), 1), (digest("yet another"), 1))
    )
    assert first.fund == second.fund == retried.fund
    assert len({each for keys in (first, second, retried) for each in (keys.publish, keys.revoke)}) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"seed": digest(1) + digest(2)},
        {"salt": digest("other salt")},
        {"order_id": bytes(16)},
        {"index": 1},
        {"purpose": "revoke"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_names_a_key_changes_it(change: dict[str, object]) -> None:
    named: dict[str, object] = {"seed": SEED, "salt": SALT, "order_id": ORDER_ID, "index": 0, "purpose": "fund"}
    assert secret_key(**named) != secret_key(**named | change)  # type: ignore[arg-type]  # values of several types


@pytest.mark.parametrize("short", ["seed", "salt", "order id"])
def test_material_of_a_wrong_size_is_refused_without_being_shown(short: str) -> None:
    material = {"seed": SEED, "salt": SALT, "order id": ORDER_ID}
    material[short] = material[short][:-1]
    with pytest.raises(ValueError, match=f"the {short} has") as caught:
        secret_key(material["seed"], material["salt"], material["order id"], 0, "fund")
    assert material[short].hex() not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    keys = keys_of(Role.MAKER, 0)
    assert repr(keys) == "AttemptKeys()"
    assert keys.points == Points(*(curve.pubkey_from_prvkey(each) for each in (keys.fund, keys.publish, keys.revoke)))


@given(st.integers(1, ORDER - 1), st.integers(1, ORDER - 1))
def test_both_sides_aggregate_to_one_key(one: int, other: int) -> None:
    points = [curve.pubkey_from_prvkey(each) for each in (one, other)]
    assert key_agg(key_sort(points)) == key_agg(key_sort(reversed(points)))


def test_fresh_points_are_accepted() -> None:
    check_points(OURS, THEIRS, {keys_of(role, 1).points.publish for role in Role})


BAD: dict[str, tuple[Callable[[Points], Points], str]] = {
    "a cloned machine": (lambda _: OURS, "not one of ours"),
    "our fund point": (lambda theirs: evolve(theirs, fund=OURS.fund), "fund .* not one of ours"),
    "our fund point negated: equal x": (lambda theirs: evolve(theirs, fund=negated(OURS.fund)), "not one of ours"),
    "our publish point as its fund point": (lambda theirs: evolve(theirs, fund=OURS.publish), "not one of ours"),
    "one point twice": (lambda theirs: evolve(theirs, revoke=theirs.publish), "revoke .* three different"),
    "publish + revoke = infinity": (lambda theirs: evolve(theirs, revoke=negated(theirs.publish)), "three different"),
    "a point seen before": (lambda theirs: evolve(theirs, revoke=keys_of(Role.TAKER, 3).points.revoke), "no earlier"),
    "the negative of one": (
        lambda theirs: evolve(theirs, publish=negated(keys_of(Role.TAKER, 3).points.revoke)),
        "no earlier",
    ),
    "no x of the curve": (lambda theirs: evolve(theirs, fund=b"\x02" + bytes(31) + b"\x05"), "fund .* on the curve"),
    "x beyond the field": (lambda theirs: evolve(theirs, fund=b"\x02" + b"\xff" * 32), "on the curve"),
    "infinity": (lambda theirs: evolve(theirs, publish=bytes(33)), "publish .* on the curve"),
    "x only": (lambda theirs: evolve(theirs, publish=theirs.publish[1:]), "on the curve"),
    "nothing": (lambda theirs: evolve(theirs, publish=b""), "on the curve"),
    "uncompressed": (
        lambda theirs: evolve(theirs, publish=curve.reserialize(theirs.publish, compressed=False)),
        "compressed point",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_points_are_refused(case: str) -> None:
    change, said = BAD[case]
    with pytest.raises(RemoteProtocolError, match=said) as caught:
        check_points(OURS, change(THEIRS), {keys_of(Role.TAKER, 3).points.revoke})
    assert caught.value.code == "bad_point"


def test_a_revocation_counts_only_with_the_right_secret() -> None:
    keys: AttemptKeys = keys_of(Role.TAKER, 0)
    check_revocation(keys.points.revoke, keys.revoke)
    for wrong in (keys.publish, bytes(32), b"\xff" * 32, keys.revoke[:-1], b""):
        with pytest.raises(RemoteProtocolError, match="revoke point") as caught:
            check_revocation(keys.points.revoke, wrong)
        assert caught.value.code == "bad_revocation"
        assert not wrong or wrong.hex() not in str(caught.value)
