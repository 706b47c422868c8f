"""Making, checking and completing a contract's signatures: pure functions of a plan, picklable, for `Compute`.

Each side signs every CET with an adaptor signature that the oracle's scalars open, the refund with a plain one, and
the commit with an adaptor signature that the *receiver's* publish secret opens: whoever publishes a commit reveals
that secret. What is made here can be made again byte for byte. Source: contract.md.

Plans and points are cached for the process, and may not be used by two of its threads at once: `Compute` runs inline
or in worker processes.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from attrs import frozen
from bitcoin.core import CTransaction
from btclib_secp256k1 import keys as curve

from ..errors import LocalError, RemoteProtocolError
from . import adaptor, schnorr
from .keys import AttemptKeys
from .numbers import DUST
from .oracle import Announcement, Anticipation
from .outcomes import Outcome
from .scripts import Leaf
from .sighash import TxOut, signature_hash
from .terms import Role
from .transactions import FINAL, ContractPlan, ContractTransactions, completed, txid
from .witness import check_witness


@frozen
class Signatures:
    """One side's signatures of what spends the commit, as they go over the wire."""

    refund: bytes
    """64 bytes, BIP340."""
    cets: tuple[bytes, ...]
    """By event: the adaptor signatures of its CETs, 65 bytes each, in the order of `ContractTransactions.by_event`."""

    def of(self, transactions: ContractTransactions, outcome: Outcome) -> bytes:
        """The adaptor signature of one outcome's CET."""
        start = adaptor.SIZE * transactions.by_event[outcome.event].index(outcome)
        return self.cets[outcome.event][start : start + adaptor.SIZE]


@lru_cache(maxsize=2048)
def transactions_of(plan: ContractPlan) -> ContractTransactions:
    """The transactions of a plan, kept for the next calls about the same plan in this process."""
    return ContractTransactions(plan)


@lru_cache(maxsize=64)
def anticipation(announcement: Announcement) -> Anticipation:
    """The points of an event, shared by all contracts of this process that name it; call it to build them ahead."""
    return Anticipation(announcement)


def _x(plan: ContractPlan, role: Role) -> bytes:
    return plan.party(role).points.fund[1:]


def sign_contract(plan: ContractPlan, role: Role, fund_secret: bytes) -> Signatures:
    """All signatures of CETs and refund that `role` gives to its peer."""
    transactions = transactions_of(plan)
    signer = adaptor.Signer(fund_secret)
    cets = []
    for announcement, outcomes in zip(plan.announcements, transactions.by_event, strict=True):
        point = anticipation(announcement).point
        cets.append(b"".join(signer.sign(transactions.cet_hash(each), point(each.digits)) for each in outcomes))
    return Signatures(schnorr.sign(fund_secret, transactions.refund_hash), tuple(cets))


def verify_contract(plan: ContractPlan, signer: Role, signatures: Signatures) -> None:
    """Refuse what `signer` sent unless every signature is valid and none is missing or too many.

    Raises `RemoteProtocolError` "bad_signature" naming the first that is not.
    """
    transactions = transactions_of(plan)
    if not schnorr.verify(_x(plan, signer), transactions.refund_hash, signatures.refund):
        raise _bad("the refund signature is not valid")
    if len(signatures.cets) != len(plan.announcements):
        raise _bad(f"there are CET signatures of {len(signatures.cets)} events, not {len(plan.announcements)}")
    for event, (outcomes, joined) in enumerate(zip(transactions.by_event, signatures.cets, strict=True)):
        if len(joined) != adaptor.SIZE * len(outcomes):
            allowed = f"{adaptor.SIZE} × {len(outcomes)}"
            raise _bad(f"the CET signatures of event {event} have {len(joined)} bytes, allowed are {allowed}")
    verify = adaptor.Verifier(_x(plan, signer)).verify
    for event, (outcomes, joined) in enumerate(zip(transactions.by_event, signatures.cets, strict=True)):
        point = anticipation(plan.announcements[event]).point
        for start, each in zip(range(0, len(joined), adaptor.SIZE), outcomes, strict=True):
            signature = joined[start : start + adaptor.SIZE]
            if not verify(transactions.cet_hash(each), point(each.digits), signature):
                raise _bad(f"the signature of event {event}'s CET for prices {each.low} to {each.high} is not valid")


def sign_commit(plan: ContractPlan, role: Role, fund_secret: bytes) -> bytes:
    """`role`'s adaptor signature of the commit, 65 bytes, encrypted to its peer's publish point."""
    transactions = transactions_of(plan)
    return adaptor.sign(fund_secret, transactions.commit_hash, plan.party(role.other).points.publish)


def verify_commit(plan: ContractPlan, signer: Role, signature: bytes) -> None:
    """Refuse a commit signature that we could not complete. Raises `RemoteProtocolError` "bad_signature"."""
    transactions = transactions_of(plan)
    publish = plan.party(signer.other).points.publish
    if not adaptor.verify(_x(plan, signer), transactions.commit_hash, publish, signature):
        raise _bad("the commit signature is not valid")


def verify_lock_witness(plan: ContractPlan, index: int, witness: Sequence[bytes]) -> None:
    """Refuse a witness of the lock's input `index`. Raises `RemoteProtocolError` "bad_witness"."""
    transactions = transactions_of(plan)
    check_witness(transactions.lock, index, transactions.lock_prevouts, witness)


# Completing what is to be broadcast. The result is serialized with its witnesses; `LocalError` "bad_signature" means
# that what was stored, or the secret, does not belong to this plan.


def complete_lock(plan: ContractPlan, witnesses: Mapping[int, Sequence[bytes]]) -> bytes:
    """The lock with the witnesses of all its inputs, by index."""
    lock = transactions_of(plan).lock
    return completed(lock, [witnesses[index] for index in range(len(lock.vin))])


def complete_commit(plan: ContractPlan, role: Role, keys: AttemptKeys, peer_signature: bytes) -> bytes:
    """The commit that `role` publishes, with which its publish secret becomes known to the peer."""
    transactions = transactions_of(plan)
    return by_both(
        plan,
        {role: schnorr.sign(keys.fund, transactions.commit_hash), role.other: _open(peer_signature, keys.publish)},
        tx=transactions.commit,
        message=transactions.commit_hash,
        leaf=transactions.lock_output.leaf,
    )


def complete_cet(
    plan: ContractPlan, role: Role, fund_secret: bytes, outcome: Outcome, *, peer_signature: bytes, opening: bytes
) -> bytes:
    """The CET of an outcome; `opening` is the weighted sum of the oracle's scalars for its digits."""
    transactions = transactions_of(plan)
    message = transactions.cet_hash(outcome)
    return by_both(
        plan,
        {role: schnorr.sign(fund_secret, message), role.other: _open(peer_signature, opening)},
        tx=transactions.cet(outcome),
        message=message,
        leaf=transactions.commit_output.leaf,
    )


def complete_refund(plan: ContractPlan, role: Role, fund_secret: bytes, peer_signature: bytes) -> bytes:
    """The refund, from the peer's plain signature."""
    transactions = transactions_of(plan)
    return by_both(
        plan,
        {role: schnorr.sign(fund_secret, transactions.refund_hash), role.other: peer_signature},
        tx=transactions.refund,
        message=transactions.refund_hash,
        leaf=transactions.commit_output.leaf,
    )


def spends_lock(plan: ContractPlan, tx: CTransaction) -> bool:
    """Whether the chain can accept `tx` as a spend of the lock: its lone input is the lock's output, and its witness is
    the signature of both by the key path, or each one's by the leaf. All that this contract ever signs is of this kind.
    """
    transactions = transactions_of(plan)
    lock, spent = transactions.lock_output, TxOut(transactions.lock_value, transactions.lock_output.script)
    if len(tx.vin) != 1 or (tx.vin[0].prevout.hash, tx.vin[0].prevout.n) != (transactions.lock_txid, 0):
        return False
    stack = [bytes(item) for item in tx.wit.vtxinwit[0].scriptWitness.stack] if tx.wit.vtxinwit else []
    if len(stack) == 1:
        return schnorr.verify(spent.script[2:], signature_hash(tx, 0, [spent]), stack[0])
    message = signature_hash(tx, 0, [spent], leaf_hash=lock.leaf.hash)
    signatures = {role: _signature(tx, role) for role in Role}
    return stack == list(lock.leaf.witness(signatures[Role.MAKER], signatures[Role.TAKER])) and all(
        schnorr.verify(_x(plan, role), message, signature) for role, signature in signatures.items()
    )


def recover_publish_secret(plan: ContractPlan, role: Role, raw_commit: bytes, own_signature: bytes) -> bytes | None:
    """The peer's publish secret, from its commit transaction and the adaptor signature that `role` gave it.

    None if `role` published the commit itself: then its signature was not completed from the adaptor signature.
    Raises `ValueError` for a transaction that is not this plan's commit.
    """
    tx = CTransaction.deserialize(raw_commit)
    if txid(tx) != transactions_of(plan).commit_txid:
        raise ValueError(f"transaction {txid(tx)[::-1].hex()} is not the commit of attempt {plan.index}")
    signature = _signature(tx, role)
    if signature[:32] != own_signature[1:33]:
        return None
    return adaptor.recover(own_signature, signature, plan.party(role.other).points.publish)


def recover_opening(plan: ContractPlan, role: Role, raw_cet: bytes, fund_secret: bytes) -> tuple[Outcome, bytes] | None:
    """The outcome that a CET was opened for, and its opening: what the peer was told by the oracle.

    `fund_secret` is that of `role`, ours: our adaptor signatures are made again to be compared. Outcomes that pay the
    same share one CET, so its id alone does not tell. None if no adaptor signature of `role` was completed: then `role`
    published it itself, or it is no CET of this plan. Raises `ValueError` for a witness that does not hold.
    """
    tx = CTransaction.deserialize(raw_cet)
    transactions, wanted = transactions_of(plan), txid(tx)
    candidates = [each for each in transactions.outcomes if txid(transactions.cet(each)) == wanted]
    if not candidates:
        return None
    signature = _signature(tx, role)
    # the transaction's id does not cover its witness, and a server may have sent any
    if not schnorr.verify(_x(plan, role), transactions.cet_hash(candidates[0]), signature):
        raise ValueError(f"the witness of {wanted[::-1].hex()} does not hold our signature")
    signer = adaptor.Signer(fund_secret)
    for outcome in candidates:
        point = anticipation(plan.announcements[outcome.event]).point(outcome.digits)
        own = signer.sign(transactions.cet_hash(outcome), point)
        if signature[:32] == own[1:33]:
            return outcome, adaptor.recover(own, signature, point)
    return None


def _signature(tx: CTransaction, role: Role) -> bytes:
    """A role's in the witness of what spends a 2-of-2 leaf; empty if there is none: a server may show any witness."""
    stack = tx.wit.vtxinwit[0].scriptWitness.stack if tx.wit.vtxinwit else ()
    return bytes(stack[1 if role is Role.MAKER else 0]) if len(stack) == 4 else b""


def punish(
    plan: ContractPlan,
    wronged: Role,
    fund_secret: bytes,
    *,
    publish_secret: bytes,
    revoke_secret: bytes,
    script: bytes,
    fee: int,
) -> bytes:
    """Everything in a revoked commit to the wronged side's `script`, less `fee` satoshis.

    Both secrets are the cheat's: `publish` recovered from its commit, `revoke` from when it was superseded. Raises
    `ValueError` for a fee that leaves no output; the size is `funding.PUNISH_BASE_VSIZE` and the output's.
    """
    transactions = transactions_of(plan)
    leaf = transactions.commit_output.punish(wronged)
    spent = transactions.commit_outputs[0]
    if not 0 <= fee <= spent.value - DUST:
        raise ValueError(f"fee is {fee} sat, allowed is 0 to {spent.value - DUST}")
    tx = transactions.spend(FINAL, [TxOut(spent.value - fee, script)])
    message = signature_hash(tx, 0, [spent], leaf_hash=leaf.hash)
    cheat = curve.prvkey_tweak_add(publish_secret, revoke_secret)
    witness = leaf.witness(schnorr.sign(fund_secret, message), schnorr.sign(cheat, message))
    return completed(tx, [witness])


def by_both(
    plan: ContractPlan, signatures: Mapping[Role, bytes], *, tx: CTransaction, message: bytes, leaf: Leaf
) -> bytes:
    """`tx` with both sides' signatures of its one input, once they are checked; the maker's is the leaf's first."""
    for signer, signature in signatures.items():
        if not schnorr.verify(_x(plan, signer), message, signature):
            raise LocalError("bad_signature", f"the {signer.value}'s signature of {txid(tx)[::-1].hex()} is not valid")
    return completed(tx, [leaf.witness(signatures[Role.MAKER], signatures[Role.TAKER])])


def _open(signature: bytes, secret: bytes) -> bytes:
    try:
        return adaptor.decrypt(signature, secret)
    except ValueError as error:
        raise LocalError("bad_signature", str(error)) from None


def _bad(sentence: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad_signature", sentence)
