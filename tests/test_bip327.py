"""MuSig2 as we use it, against BIP327's published vectors: key aggregation, tweaks, nonces, partial signatures."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from btclib_secp256k1 import ffi, keys, musig

from protocols.contract import schnorr
from protocols.contract.keys import key_agg, key_sort

from .vectors import vector


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(vector(f"bip327/{name}.json").read_text())
    return loaded


def chosen(items: Sequence[str], indices: Sequence[int]) -> list[bytes]:
    return [bytes.fromhex(items[index]) for index in indices]


def cache_of(vectors: dict[str, Any], case: dict[str, Any]) -> musig.KeyAggCache:
    """The aggregate of the case's keys with its tweaks applied."""
    cache = musig.KeyAggCache(chosen(vectors["pubkeys"], case["key_indices"]))
    tweaks = chosen(vectors.get("tweaks", []), case.get("tweak_indices", []))
    for tweak, x_only in zip(tweaks, case.get("is_xonly", []), strict=True):
        apply: Callable[[bytes], bytes] = cache.pubkey_xonly_tweak_add if x_only else cache.pubkey_ec_tweak_add
        apply(tweak)
    return cache


def secret_nonce(fixed: bytes) -> musig.SecretNonce:
    """The vectors fix what the library draws at random: k1 ‖ k2 ‖ public key, put where it keeps them."""
    pubkey = keys.parse(fixed[64:])
    inner = bytes.fromhex("220edcf1") + fixed[:64] + bytes(ffi.buffer(pubkey))
    secnonce = ffi.new("secp256k1_musig_secnonce *")
    ffi.memmove(secnonce, inner, len(inner))
    points = b"".join(keys.pubkey_from_prvkey(fixed[start : start + 32]) for start in (0, 32))
    return musig.SecretNonce(secnonce, musig.pubnonce_parse(points), pubkey)


def test_keys_are_sorted() -> None:
    vectors = load("key_sort")
    sorted_keys = [bytes.fromhex(each) for each in vectors["sorted_pubkeys"]]
    assert key_sort(bytes.fromhex(each) for each in vectors["pubkeys"]) == sorted_keys


def test_keys_are_aggregated() -> None:
    vectors = load("key_agg")
    for case in vectors["valid_test_cases"]:
        assert key_agg(chosen(vectors["pubkeys"], case["key_indices"])).hex().upper() == case["expected"]


def test_bad_keys_and_tweaks_are_refused() -> None:
    vectors = load("key_agg")
    for case in vectors["error_test_cases"]:
        if case["error"].get("contrib") == "pubkey":
            # an uncompressed key is the library's to read, but none of ours: `check_points` wants 33 bytes
            bad = chosen(vectors["pubkeys"], case["key_indices"])[case["error"]["signer"]]
            assert len(bad) != 33 or not keys.pubkey_verify(bad)
        else:
            with pytest.raises(ValueError, match="tweak"):
                cache_of(vectors, case)


def test_nonces_are_aggregated() -> None:
    vectors = load("nonce_agg")
    for case in vectors["valid_test_cases"]:
        assert musig.nonce_agg(chosen(vectors["pnonces"], case["pnonce_indices"])).hex().upper() == case["expected"]
    for case in vectors["error_test_cases"]:
        with pytest.raises(ValueError):
            musig.nonce_agg(chosen(vectors["pnonces"], case["pnonce_indices"]))


def _partial(vectors: dict[str, Any], case: dict[str, Any], fixed: str, message: str) -> tuple[bytes, bool]:
    """The signer's partial signature of a case, and whether the others accept it."""
    cache = cache_of(vectors, case)
    nonces = chosen(vectors["pnonces"], case["nonce_indices"])
    session = musig.Session(musig.nonce_agg(nonces), bytes.fromhex(message), cache)
    partial = secret_nonce(bytes.fromhex(fixed)).partial_sign(bytes.fromhex(vectors["sk"]), cache, session)
    signer = case["signer_index"]
    key = chosen(vectors["pubkeys"], case["key_indices"])[signer]
    return partial, session.partial_sig_verify(partial, nonces[signer], key, cache)


def test_partial_signatures() -> None:
    vectors = load("sign_verify")
    signed = [case for case in vectors["valid_test_cases"] if len(vectors["msgs"][case["msg_index"]]) == 64]
    assert len(signed) >= 4
    for case in signed:
        partial, valid = _partial(vectors, case, vectors["secnonces"][0], vectors["msgs"][case["msg_index"]])
        assert partial.hex().upper() == case["expected"]
        assert valid


def test_partial_signatures_under_tweaks() -> None:
    vectors = load("tweak")
    assert len(vectors["valid_test_cases"]) == 5
    for case in vectors["valid_test_cases"]:
        partial, valid = _partial(vectors, case, vectors["secnonce"], vectors["msg"])
        assert partial.hex().upper() == case["expected"]
        assert valid
    for case in vectors["error_test_cases"]:
        with pytest.raises(ValueError, match="tweak"):
            cache_of(vectors, case)


def test_wrong_partial_signatures_are_refused() -> None:
    vectors = load("sign_verify")
    for case in vectors["verify_fail_test_cases"]:
        cache = cache_of(vectors, case)
        nonces = chosen(vectors["pnonces"], case["nonce_indices"])
        session = musig.Session(musig.nonce_agg(nonces), bytes.fromhex(vectors["msgs"][case["msg_index"]]), cache)
        signer = case["signer_index"]
        key = chosen(vectors["pubkeys"], case["key_indices"])[signer]
        try:
            valid = session.partial_sig_verify(bytes.fromhex(case["sig"]), nonces[signer], key, cache)
        except ValueError:  # a scalar beyond the order is not even read
            valid = False
        assert not valid, case["comment"]


def test_a_nonce_signs_once() -> None:
    vectors = load("sign_verify")
    case = vectors["valid_test_cases"][0]
    cache = cache_of(vectors, case)
    nonces = musig.nonce_agg(chosen(vectors["pnonces"], case["nonce_indices"]))
    session = musig.Session(nonces, bytes.fromhex(vectors["msgs"][case["msg_index"]]), cache)
    nonce = secret_nonce(bytes.fromhex(vectors["secnonces"][0]))
    nonce.partial_sign(bytes.fromhex(vectors["sk"]), cache, session)
    with pytest.raises(ValueError):
        nonce.partial_sign(bytes.fromhex(vectors["sk"]), cache, session)


def test_partial_signatures_are_aggregated() -> None:
    vectors = load("sig_agg")
    message = bytes.fromhex(vectors["msg"])
    for case in vectors["valid_test_cases"]:
        cache = cache_of(vectors, case)
        session = musig.Session(bytes.fromhex(case["aggnonce"]), message, cache)
        signature = session.partial_sig_agg(chosen(vectors["psigs"], case["psig_indices"]))
        assert signature.hex().upper() == case["expected"]
        assert schnorr.verify(cache.pubkey_get()[1:], message, signature)
    for case in vectors["error_test_cases"]:
        session = musig.Session(bytes.fromhex(case["aggnonce"]), message, cache_of(vectors, case))
        with pytest.raises(ValueError):
            session.partial_sig_agg(chosen(vectors["psigs"], case["psig_indices"]))
