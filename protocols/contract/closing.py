"""Ending a contract together: the close of the lock, and the cooperative spend of a commit that is out.

The close spends the lock by its key path: both fund keys sign as one by MuSig2 (BIP327), with the lock output's taproot
tweak in the session. The cooperative spend pays what the CET of the attested price would, through the commit's leaf for
both keys, and need not wait for that CET's lock. Source: contract.md, "Transactions", "Fees", "Byte level".
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn, Self, TypeAlias

from btclib_secp256k1 import ffi, keys, lib, musig
from btclib_secp256k1.context import ctx

from ..errors import LocalError, RemoteProtocolError
from . import schnorr
from .funding import later_fees, output_vsize
from .keys import key_sort
from .numbers import parse_price
from .oracle import Attestation
from .outcomes import Outcome, covering
from .payout import Payout
from .scripts import tweak
from .sighash import TxOut, signature_hash
from .signing import by_both, transactions_of
from .terms import Role
from .transactions import FINAL, LATER_VERSION, ContractPlan, ContractTransactions, completed, txid, unsigned

CLOSE_BASE_VSIZE = 68
"""A close without its outputs."""
NONCE_SIZE = 66
"""Bytes of a public MuSig2 nonce: two compressed points."""
PARTIAL_SIZE = 32
"""Bytes of a partial signature."""

Entropy: TypeAlias = Callable[[int], bytes]
"""Gives so many random bytes, never the same again."""

# --- the close --------------------------------------------------------------------------------------------------------


class Close:
    """The transaction that pays both sides out of the lock at an agreed price, without its witness.

    `price` is a decimal string, USD. Raises `BadNumber` for one that is no price.
    """

    def __init__(self, plan: ContractPlan, price: str) -> None:
        transactions = ContractTransactions(plan)
        lock = transactions.lock_output
        self.plan = plan
        self.price = price
        self.tx = unsigned(LATER_VERSION, [(transactions.lock_txid, 0, FINAL)], close_outputs(plan, price))
        self.txid = txid(self.tx)
        self.message = signature_hash(self.tx, 0, [TxOut(transactions.lock_value, lock.script)])
        """What both sign."""
        self.output_key = lock.script[2:]
        """32 bytes: the key that the lock pays to, and that both sides are together."""
        self.keys = musig.KeyAggCache(key_sort(plan.party(role).points.fund for role in Role))
        self.keys.pubkey_xonly_tweak_add(tweak(lock.internal_key, lock.leaf.hash))


def close_outputs(plan: ContractPlan, price: str) -> tuple[TxOut, TxOut]:
    """The maker's output, then the taker's: the payout at `price`, and half of what is left of the later fees.

    An odd satoshi would be the maker's, but 216·r + 240 are left at fee rate r ≥ 2; so no output is dust either, and
    none is left out. Raises `BadNumber`.
    """
    terms, scripts = plan.terms, [plan.party(role).payout_script for role in Role]
    fee = terms.fee_rate * (CLOSE_BASE_VSIZE + sum(map(output_vsize, scripts)))
    left = later_fees(terms.fee_rate, *scripts) - fee
    payouts = Payout(terms).split(Payout(terms).long(parse_price(price)))
    return (
        TxOut(payouts[Role.MAKER] + left - left // 2, plan.maker.payout_script),
        TxOut(payouts[Role.TAKER] + left // 2, plan.taker.payout_script),
    )


class CloseNonce:
    """Our secret nonce for one close, which signs it once or never. Use it in a `with` block, which wipes it.

    A nonce that signs twice gives the fund key away. So it is drawn here and can be neither read nor copied nor
    stored; it is made for one message and one lock; it meets one nonce of the peer (`meet`), whatever comes of that;
    and what it becomes then signs once. Whatever fails in between, the next try is a new one from the start.
    """

    def __init__(self, close: Close, role: Role, fund_secret: bytes, entropy: Entropy) -> None:
        self._close, self._role = close, role
        self._secret = _draw(close, role, fund_secret, entropy)
        self._met = False
        self.public: bytes = self._secret.pubnonce
        """66 bytes, for the peer."""

    def meet(self, peer_nonce: bytes) -> "CloseSession":
        """What signs and checks with this one nonce of the peer. A second call raises `LocalError`.

        Raises `RemoteProtocolError` "bad_nonce" for bytes that are no nonce; ours is spent all the same.
        """
        if self._met:
            raise LocalError("nonce_spent", "a nonce answers one nonce of the peer; sign again with a new one")
        self._met = True
        try:
            total = musig.nonce_agg([self.public, peer_nonce])
        except ValueError:
            self._secret.wipe()
            raise RemoteProtocolError(
                "bad_nonce", f"nonce is {peer_nonce[:NONCE_SIZE].hex()}, allowed are two compressed points of the curve"
            ) from None
        session = musig.Session(total, self._close.message, self._close.keys)
        return CloseSession(self._close, self._role, self._secret, session, peer_nonce)

    def __reduce__(self) -> NoReturn:
        """What pickle and copy ask for."""
        raise TypeError("a nonce is neither stored nor copied")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._secret.wipe()


class CloseSession:
    """One signing of one close, both nonces known. Made by `CloseNonce.meet`."""

    def __init__(
        self, close: Close, role: Role, secret: musig.SecretNonce, session: musig.Session, peer_nonce: bytes
    ) -> None:
        self._close, self._role = close, role
        self._secret, self._session, self._peer_nonce = secret, session, peer_nonce

    def sign(self, fund_secret: bytes) -> bytes:
        """Our partial signature, 32 bytes; the nonce is wiped. A second call raises `LocalError`."""
        try:
            partial: bytes = self._secret.partial_sign(fund_secret, self._close.keys, self._session)
        except ValueError as error:  # spent or wiped, or the secret is not that of our fund point
            raise LocalError("nonce_spent", f"the close cannot be signed: {error}") from None
        return partial

    def verify(self, peer_partial: bytes) -> None:
        """Refuse a partial signature that is not the peer's for this session. `RemoteProtocolError` "bad_signature"."""
        point = self._close.plan.party(self._role.other).points.fund
        try:
            valid = self._session.partial_sig_verify(peer_partial, self._peer_nonce, point, self._close.keys)
        except ValueError:  # no scalar
            valid = False
        if not valid:
            raise RemoteProtocolError("bad_signature", "the partial signature of the close is not valid")

    def complete(self, own_partial: bytes, peer_partial: bytes) -> bytes:
        """The close as it is broadcast. Raises what `verify` does."""
        self.verify(peer_partial)
        signature = self._session.partial_sig_agg([own_partial, peer_partial])
        if not schnorr.verify(self._close.output_key, self._close.message, signature):
            raise LocalError("bad_signature", "our own partial signature is not of this session")
        return completed(self._close.tx, [[signature]])


def _draw(close: Close, role: Role, fund_secret: bytes, entropy: Entropy) -> musig.SecretNonce:
    """A nonce as BIP327's NonceGen makes it; the library's own wrapper would draw the randomness for itself.

    The secret key is mixed in, and the message, which commits to the lock's output: a poor source of randomness alone
    does not make two closes share a nonce.
    """
    fund = close.plan.party(role).points.fund
    if keys.pubkey_from_prvkey(fund_secret) != fund:
        raise ValueError(f"the fund secret is not that of the {role.value}'s fund point {fund.hex()}")
    drawn = entropy(32)
    if len(drawn) != 32:
        raise ValueError(f"the source of randomness gave {len(drawn)} bytes instead of 32")
    secret, public = ffi.new("secp256k1_musig_secnonce *"), ffi.new("secp256k1_musig_pubnonce *")
    point = keys.parse(fund)
    randomness = ffi.new("unsigned char[32]", drawn)  # the library wipes this copy
    if not lib.secp256k1_musig_nonce_gen(
        ctx, secret, public, randomness, fund_secret, point, close.message, ffi.NULL, ffi.NULL
    ):
        raise ValueError("the source of randomness gave zeros")
    return musig.SecretNonce(secret, public, point)


# --- the cooperative spend --------------------------------------------------------------------------------------------


def attested_outcome(plan: ContractPlan, attestations: Sequence[Attestation | None]) -> tuple[Outcome, int] | None:
    """The outcome that counts and the price attested: of the earliest event that has both; None if there is none.

    `attestations` are those of the plan's events, in order; None: not attested. The early events count only in a
    liquidation region, the last one at every price.
    """
    outcomes = transactions_of(plan).outcomes
    for event, (announcement, attestation) in enumerate(zip(plan.announcements, attestations, strict=True)):
        if attestation is None:
            continue
        if attestation.id != announcement.id:
            raise ValueError(f"the attestation of event {event} is that of {attestation.id}, not {announcement.id}")
        if (outcome := covering(outcomes, event, attestation.price)) is not None:
            return outcome, attestation.price
    return None


class Spend:
    """The transaction that pays both sides out of a commit that is out, as an outcome's CET would; no witness yet."""

    def __init__(self, plan: ContractPlan, outcome: Outcome) -> None:
        transactions = ContractTransactions(plan)
        self.plan = plan
        self.tx = transactions.spend(FINAL, transactions.outputs(outcome.long))
        self.txid = txid(self.tx)
        self._leaf = transactions.commit_output.leaf
        self.message = signature_hash(self.tx, 0, [transactions.commit_outputs[0]], leaf_hash=self._leaf.hash)
        """What both sign."""

    def sign(self, fund_secret: bytes) -> bytes:
        """One side's signature, 64 bytes; made again, it is the same."""
        return schnorr.sign(fund_secret, self.message)

    def verify(self, signer: Role, signature: bytes) -> None:
        """Raises `RemoteProtocolError` "bad_signature" unless this is `signer`'s."""
        if not schnorr.verify(self.plan.party(signer).points.fund[1:], self.message, signature):
            raise RemoteProtocolError("bad_signature", "the signature of the cooperative spend is not valid")

    def complete(self, role: Role, own: bytes, peer: bytes) -> bytes:
        """The spend as it is broadcast, from `role`'s signature and its peer's. Raises what `verify` does."""
        self.verify(role.other, peer)
        return by_both(self.plan, {role: own, role.other: peer}, tx=self.tx, message=self.message, leaf=self._leaf)
