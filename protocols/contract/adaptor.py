"""Schnorr adaptor signatures: BIP340 signatures that only the holder of a second secret can complete.

For signing key x with the even-y point P, and an adaptor point T = t·G, a signature is 65 bytes: R compressed ‖ ŝ.
R = k·G + T, and the parity byte of R carries ε: +1 (02) or −1 (03), for BIP340 wants the final nonce ε·R to have an
even y. ŝ = ε·k + e·x with e BIP340's challenge over (x(R), x(P), message). Whoever knows t completes it to the BIP340
signature (x(R), ŝ + ε·t), and whoever sees both learns t. Source: contract.md, "Schnorr adaptor signatures".

Secret scalars go through libsecp256k1's constant-time functions; Python's integers see public values only, but for
the masking of the secret. The library is called at its C level where a contract needs it a thousand times.
"""

from btclib_secp256k1 import ffi, keys, lib
from btclib_secp256k1.context import ctx

from .numbers import ORDER, tagged_hash

SIZE = 65
"""Bytes of an adaptor signature."""


def _challenge(r: bytes, key: bytes, message: bytes) -> bytes:
    return tagged_hash("BIP0340/challenge", r + key + message)


class Signer:
    """Makes many adaptor signatures with one secret. Not for several threads at once.

    Nonces are deterministic, from the masked secret, x(P), T and the message: two different pre-signatures of one
    commit transaction would defeat punishment.
    """

    def __init__(self, secret: bytes) -> None:
        point = keys.pubkey_from_prvkey(secret)
        self._key = point[1:]
        self._secret = secret if point[0] == 2 else keys.prvkey_negate(secret)
        mask = tagged_hash("cfd/adaptor/aux", tagged_hash("cfd/aux", secret))
        masked = int.from_bytes(self._secret, "big") ^ int.from_bytes(mask, "big")
        self._nonce_prefix = masked.to_bytes(32, "big") + self._key

    def sign(self, message: bytes, point: bytes) -> bytes:
        """The 65-byte signature of a 32-byte message, encrypted to the 33-byte `point`.

        Raises `ValueError` when `point` is not on the curve.
        """
        if len(message) != 32 or len(point) != 33:
            raise ValueError(f"a message has 32 bytes and a point 33, not {len(message)} and {len(point)}")
        nonce = ffi.new("unsigned char[32]", tagged_hash("cfd/adaptor/nonce", self._nonce_prefix + point + message))
        scalar = ffi.new("unsigned char[32]", self._secret)
        public, total = ffi.new("secp256k1_pubkey *"), ffi.new("secp256k1_pubkey *")
        try:
            both = ffi.new("secp256k1_pubkey *[2]", (public, keys.parse(point, "adaptor point")))
            if not (
                lib.secp256k1_ec_pubkey_create(ctx, public, nonce)
                and lib.secp256k1_ec_pubkey_combine(ctx, total, both, 2)
            ):
                raise ValueError("the nonce is no scalar, or adds up to infinity with the adaptor point")
            r = keys.serialize(total)
            if r[0] == 3:
                lib.secp256k1_ec_seckey_negate(ctx, nonce)
            if not (
                lib.secp256k1_ec_seckey_tweak_mul(ctx, scalar, _challenge(r[1:], self._key, message))
                and lib.secp256k1_ec_seckey_tweak_add(ctx, scalar, nonce)
            ):
                raise ValueError("the challenge is no scalar")  # a chance of 2⁻¹²⁸
            return r + bytes(scalar)
        finally:
            ffi.memmove(nonce, bytes(32), 32)
            ffi.memmove(scalar, bytes(32), 32)


class Verifier:
    """Checks many adaptor signatures of one key, given as its 32-byte x coordinate.

    ŝ·G − e·P in one double multiplication: ECDSA's key recovery computes r⁻¹(s·Y − z·G) for the point Y whose x is r,
    so with Y = P, s = −e·r and z = −ŝ·r it is what we want, in 48 µs instead of 61 for two multiplications. Public
    values only: recovery is not constant-time.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        x = int.from_bytes(key, "big")
        self._r = x % ORDER
        self._recovery_id = 2 if x >= ORDER else 0  # y is even in either case
        self._r_bytes = self._r.to_bytes(32, "big")

    def verify(self, message: bytes, point: bytes, signature: bytes) -> bool:
        """Whether the signature of a 32-byte message is valid for `point`; False for anything malformed."""
        if len(self._key) != 32 or len(message) != 32 or len(point) != 33 or len(signature) != SIZE:
            return False
        s = int.from_bytes(signature[33:], "big")
        if s >= ORDER:
            return False
        e = int.from_bytes(_challenge(signature[1:33], self._key, message), "big")
        recoverable = ffi.new("secp256k1_ecdsa_recoverable_signature *")
        nonce, total = ffi.new("secp256k1_pubkey *"), ffi.new("secp256k1_pubkey *")
        try:
            both = ffi.new("secp256k1_pubkey *[2]", (nonce, keys.parse(point)))
        except ValueError:
            return False
        return bool(
            lib.secp256k1_ecdsa_recoverable_signature_parse_compact(
                ctx, recoverable, self._r_bytes + (-e * self._r % ORDER).to_bytes(32, "big"), self._recovery_id
            )
            and lib.secp256k1_ecdsa_recover(ctx, nonce, recoverable, (-s * self._r % ORDER).to_bytes(32, "big"))
            and (signature[0] == 2 or lib.secp256k1_ec_pubkey_negate(ctx, nonce))
            and lib.secp256k1_ec_pubkey_combine(ctx, total, both, 2)
            # R as sent must be ε·(ŝ·G − e·P) + T: equal bytes also prove that it is on the curve
            and keys.serialize(total) == signature[:33]
        )


def sign(secret: bytes, message: bytes, point: bytes) -> bytes:
    """One adaptor signature; see `Signer`."""
    return Signer(secret).sign(message, point)


def verify(key: bytes, message: bytes, point: bytes, signature: bytes) -> bool:
    """Check one adaptor signature; see `Verifier`."""
    return Verifier(key).verify(message, point, signature)


def decrypt(signature: bytes, secret: bytes) -> bytes:
    """The 64-byte BIP340 signature that an adaptor signature becomes with the adaptor point's secret scalar.

    The result is valid when the adaptor signature was, for this scalar's point. Raises `ValueError` for a malformed
    signature or scalar.
    """
    r, s = _split(signature)
    if not keys.prvkey_verify(secret):
        raise ValueError("the adaptor point's secret is no scalar")
    return r[1:] + keys.prvkey_tweak_add(s, secret if r[0] == 2 else keys.prvkey_negate(secret))


def recover(adaptor_signature: bytes, signature: bytes, point: bytes) -> bytes:
    """The secret scalar of `point`, from an adaptor signature and the BIP340 signature completed from it.

    Raises `ValueError` unless the scalar is really the point's.
    """
    r, s = _split(adaptor_signature)
    if len(signature) != 64 or signature[:32] != r[1:]:
        raise ValueError("the signature was not completed from this adaptor signature")
    difference = keys.prvkey_tweak_add(signature[32:], keys.prvkey_negate(s))
    secret = difference if r[0] == 2 else keys.prvkey_negate(difference)
    if keys.pubkey_from_prvkey(secret) != point:
        raise ValueError("what the two signatures reveal is not the adaptor point's secret")
    return secret


def _split(signature: bytes) -> tuple[bytes, bytes]:
    if len(signature) != SIZE or signature[0] not in (2, 3):
        raise ValueError(f"an adaptor signature has {SIZE} bytes and begins with 02 or 03")
    return signature[:33], signature[33:]
