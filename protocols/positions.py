"""``/cfd/positions/1``: the first dialogue on each connection. Both say how far each position that they share has come.

::

    taker                                       maker
    PositionStates, one or more    →                                of its positions with this maker
                                   ←   PositionStates, one or more  of those among them that it has with this taker
    Proofs, one or more            →                                where the taker has a contract unknown to the maker
                                   ←            Proofs, one or more and the other way round
                                                                    PeerAhead: our record is older than our signatures

What a peer says here is believed by no rule about money: it selects what to resend, no more. But one thing it can
prove: that we signed a commit of which we know nothing. Then our record was restored from a backup, we do not know what
we have revoked, and the position is *recovered*: no commit of it is published of our own accord (design.md, rule 7).
Everything may be said again on the next connection, and means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from attrs import evolve, field, frozen
from attrs.validators import and_, ge, le, max_len
from bitcoin.core import CTransaction
from bitcoin.core.serialize import SerializationError

from protocols.codec import Codec, Message, Protocol, exactly
from protocols.contract import adaptor
from protocols.contract.sighash import TxOut, signature_hash
from protocols.contract.signing import transactions_of
from protocols.contract.terms import Role
from protocols.contract.transactions import FINAL, LATER_VERSION, ContractPlan, unsigned
from protocols.contract.transactions import txid as txid_of
from protocols.dialogue import Ask, Fact, Persist, Send, receive
from protocols.errors import RemoteProtocolError
from protocols.offers import ID_LENGTH

WITHIN = 10.0
"""Seconds for each message."""
STATES_EACH = 1000
PROOFS_EACH = 400
MESSAGES = 100
"""Of each kind, that one side may send."""
COMMIT_SIZE = 107
"""Bytes of a commit without its witness."""

# --- messages ---------------------------------------------------------------------------------------------------------


_INDEX = and_(ge(0), le(0xFFFF_FFFF))


def _txid_or_none(_: object, attribute: object, value: bytes) -> None:
    if len(value) not in (0, 32):
        raise ValueError(f"pending must be 32 bytes or none, got {len(value)}")


@frozen
class PositionState:
    """How far one position has come, by its sender's record."""

    order_id: bytes = field(validator=exactly(ID_LENGTH))
    complete: int = field(validator=_INDEX)
    """The index of the last contract that the sender can enforce."""
    pending: bytes = field(validator=_txid_or_none)
    """Internal order: the commit of the contract after that one, if the sender's signature of it left; else empty."""
    revoked: int = field(validator=_INDEX)
    """How many contracts the sender has revoked: those whose index is lower."""
    held: int = field(validator=_INDEX)
    """How many revocations of the receiver's the sender holds: of contracts whose index is lower."""


@frozen
class PositionStates(Message):
    positions: tuple[PositionState, ...] = field(validator=max_len(STATES_EACH))
    last: bool
    """Whether no other one follows."""


@frozen
class Proof:
    """That the receiver signed the commit of a contract, and the sender can publish it."""

    order_id: bytes = field(validator=exactly(ID_LENGTH))
    index: int = field(validator=_INDEX)
    commit: bytes = field(validator=exactly(COMMIT_SIZE))
    """The transaction without its witness."""
    signature: bytes = field(validator=exactly(adaptor.SIZE), repr=False)
    """The receiver's adaptor signature of the commit, encrypted to `publish`."""
    publish: bytes = field(validator=exactly(33))
    """The sender's publish point of this contract."""


@frozen
class Proofs(Message):
    proofs: tuple[Proof, ...] = field(validator=max_len(PROOFS_EACH))
    last: bool
    """Whether no other one follows."""


PROTOCOL = Protocol("/cfd/positions/1", Codec(PositionStates, Proofs, limit=1 << 18), send_within=WITHIN)

# --- what is remembered -----------------------------------------------------------------------------------------------


@frozen
class PeerAhead(Fact):
    """We signed a commit that our record knows nothing of; verified. The position is *recovered* from here on."""

    order_id: bytes
    proof: Proof


# --- questions to the node --------------------------------------------------------------------------------------------


@frozen
class SharedStates(Ask[Mapping[bytes, PositionState]]):
    """By order id, the state of every position with this peer that has a contract and whose lock may be unspent."""


@frozen
class ProveIndex(Ask[Proof]):
    """Of a contract that is complete; `prove` makes it."""

    order_id: bytes
    index: int


@frozen
class Signed:
    """What our record knows of the commits of one position."""

    plan: ContractPlan
    """Of any of its contracts: the lock is the same for all."""
    role: Role
    """Ours."""
    commits: frozenset[bytes]
    """The ids, in internal order, of all whose signature of ours may have left."""


@frozen
class FindSigned(Ask[Signed]):
    order_id: bytes


# --- the proof --------------------------------------------------------------------------------------------------------


def prove(plan: ContractPlan, role: Role, commit_signature: bytes) -> Proof:
    """By `role`, of a contract whose commit signature it received."""
    commit = transactions_of(plan).commit.serialize()
    return Proof(plan.order_id, plan.index, commit, commit_signature, plan.party(role).points.publish)


def verify_proof(signed: Signed, proof: Proof) -> None:
    """Refuse what does not show that we signed this commit of the position. Raises `RemoteProtocolError` "bad_proof".

    The signature could have been moved to another publish point by whoever received it, but made by nobody but us; and
    the commit output hides the index. So neither says what exactly we lost: that we signed it is all we learn.
    """
    transactions = transactions_of(signed.plan)
    try:
        tx = CTransaction.deserialize(proof.commit)
    except (SerializationError, ValueError) as error:
        raise _bad(f"the commit is no transaction: {error}") from None
    commit, anchor = transactions.commit_outputs
    commit = evolve(commit, script=bytes(tx.vout[0].scriptPubKey) if tx.vout else b"")
    expected = unsigned(LATER_VERSION, [(transactions.lock_txid, 0, FINAL)], (commit, anchor))
    if proof.commit != expected.serialize():
        raise _bad("the commit does not spend the lock as a commit of this position does")
    spent = TxOut(transactions.lock_value, transactions.lock_output.script)
    message = signature_hash(tx, 0, [spent], leaf_hash=transactions.lock_output.leaf.hash)
    own = signed.plan.party(signed.role).points.fund[1:]
    if not adaptor.verify(own, message, proof.publish, proof.signature):
        raise _bad("the signature of the commit is not ours")


# --- the two roles ----------------------------------------------------------------------------------------------------


@frozen
class Shared:
    """What both sides say of one position."""

    own: PositionState
    peer: PositionState | None
    """None: the peer does not know it, or it is none that it has with us."""


async def taker() -> tuple[Shared, ...]:
    """Tell the maker of every position with it. Returns them all, with what the maker said of each."""
    own = await SharedStates()
    for message in _states(own):
        await Send(message)
    peer = await _receive_states()
    if unknown := peer.keys() - own.keys():
        raise _bad_states(f"order {min(unknown).hex()} is none that we told of")
    for proofs in await _proofs(own, peer):
        await Send(proofs)
    await _weigh(own, peer, await _receive_proofs())
    return tuple(Shared(state, peer.get(order_id)) for order_id, state in own.items())


async def maker() -> tuple[Shared, ...]:
    """Answer a taker. Returns all positions with it, with what it said of each."""
    peer = await _receive_states()
    own = await SharedStates()
    for message in _states({order_id: state for order_id, state in own.items() if order_id in peer}):
        await Send(message)
    await _weigh(own, peer, await _receive_proofs())
    for proofs in await _proofs(own, peer):
        await Send(proofs)
    return tuple(Shared(state, peer.get(order_id)) for order_id, state in own.items())


async def _proofs(own: Mapping[bytes, PositionState], peer: Mapping[bytes, PositionState]) -> list[Proofs]:
    """Of every contract that we can enforce and the peer knows nothing of."""
    proofs = []
    for order_id, theirs in peer.items():
        ours = own.get(order_id)
        if ours is not None and ours.complete > theirs.complete:
            proof = await ProveIndex(order_id, ours.complete)
            # a peer that has signed the next commit goes on from there by itself: a rollover was cut, nothing is lost
            if _commit_txid(proof) != theirs.pending:
                proofs.append(proof)
    return [Proofs(*each) for each in _parts(proofs, PROOFS_EACH)]


async def _weigh(
    own: Mapping[bytes, PositionState], peer: Mapping[bytes, PositionState], proofs: Mapping[bytes, Proof]
) -> None:
    for order_id, proof in proofs.items():
        ours, theirs = own.get(order_id), peer.get(order_id)
        if ours is None or theirs is None:
            raise _bad(f"order {order_id.hex()} is none that both told of")
        if not ours.complete < proof.index == theirs.complete:
            allowed = f"{theirs.complete}, as its sender told, and more than {ours.complete}"
            raise _bad(f"index is {proof.index}, allowed is {allowed}")
        signed = await FindSigned(order_id)
        verify_proof(signed, proof)
        if _commit_txid(proof) not in signed.commits:  # else it says nothing new, whatever index it names
            await Persist(PeerAhead(order_id, proof))


def _commit_txid(proof: Proof) -> bytes:
    return txid_of(CTransaction.deserialize(proof.commit))


# --- several messages of a kind ---------------------------------------------------------------------------------------


T = TypeVar("T")


def _states(states: Mapping[bytes, PositionState]) -> list[PositionStates]:
    return [PositionStates(*each) for each in _parts(list(states.values()), STATES_EACH)]


def _parts(items: list[T], size: int) -> Iterator[tuple[tuple[T, ...], bool]]:
    """At most `size` of them at a time, with whether these are the last; one that is empty if there are none."""
    for start in range(0, max(1, len(items)), size):
        yield tuple(items[start : start + size]), start + size >= len(items)


async def _receive_states() -> dict[bytes, PositionState]:
    states: dict[bytes, PositionState] = {}
    for _ in range(MESSAGES):
        message = await receive(PositionStates, within=WITHIN)
        _add(states, message.positions, _bad_states)
        if message.last:
            return states
    raise _bad_states(f"there are more than {MESSAGES} messages of them")


async def _receive_proofs() -> dict[bytes, Proof]:
    proofs: dict[bytes, Proof] = {}
    for _ in range(MESSAGES):
        message = await receive(Proofs, within=WITHIN)
        _add(proofs, message.proofs, _bad)
        if message.last:
            return proofs
    raise _bad(f"there are more than {MESSAGES} messages of them")


V = TypeVar("V", PositionState, Proof)


def _add(known: dict[bytes, V], more: tuple[V, ...], refusal: Callable[[str], RemoteProtocolError]) -> None:
    for each in more:
        if known.setdefault(each.order_id, each) is not each:
            raise refusal(f"order {each.order_id.hex()} is named twice")


def _bad(sentence: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad_proof", sentence)


def _bad_states(sentence: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad_positions", sentence)
