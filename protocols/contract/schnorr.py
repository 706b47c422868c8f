"""BIP340 signatures over libsecp256k1, made so that they can be made again byte for byte."""

from btclib_secp256k1 import keys, ssa, xonly

from .numbers import tagged_hash


def sign(secret: bytes, message: bytes, aux: bytes | None = None) -> bytes:
    """The 64-byte BIP340 signature of a message by the even-y form of a 32-byte secret key.

    `aux` is BIP340's auxiliary data; by default it follows from the secret ("cfd/aux", contract.md), so that a
    resend carries the same bytes. Raises `ValueError` for a secret that is no scalar.
    """
    # the library checks what it signed, as BIP340 asks: a fault must not leak the key
    return ssa.sign_custom(message, secret, tagged_hash("cfd/aux", secret) if aux is None else aux)


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a BIP340 signature is valid; False for anything malformed. `key` is a 32-byte x coordinate."""
    if len(key) != 32 or len(signature) != 64:
        return False
    try:
        return ssa.verify(message, key, signature)
    except ValueError:  # no point of the curve has this x
        return False


def even(secret: bytes) -> bytes:
    """The secret or its negative, whichever has a point with even y."""
    return keys.prvkey_negate(secret) if xonly.from_prvkey(secret)[1] else secret
