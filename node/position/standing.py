"""What a rollover's dialogue begins with: a contract, and what is on record of the one that follows it."""

from __future__ import annotations

from attrs import evolve

from node.position.events import RolloverBegun
from node.position.state import Attempt, Position
from protocols import rollover
from protocols.contract.signing import Signatures
from protocols.offers import OracleKeys
from protocols.rollover import NextContract, Progress, Standing


def index_to_roll(position: Position) -> int:
    """Of the contract whose rollover is to be finished, or else begun. There is a contract."""
    if position.rolling:
        return position.attempts[-1].index - 1
    assert position.contract is not None
    return position.contract.index


def in_question(position: Position, index: int) -> bool:
    """Whether contract `index` is complete and either stands or is the one before that, whose rollover the peer may
    have to finish."""
    contract = position.contract
    return contract is not None and index >= 0 and index in (contract.index, contract.index - 1)


def following(position: Position, index: int) -> Attempt | None:
    """The attempt that reached R1 and is contract `index` + 1 for ever, if there is one."""
    return next((each for each in position.attempts if each.index == index + 1), None)


def standing(
    position: Position, index: int, signatures: Signatures | None, *, seed: bytes, oracle: OracleKeys
) -> Standing:
    """Of contract `index`, see `in_question`.

    `signatures` are the peer's of the contract that follows: given if and only if there is such an attempt. `seed` is
    the node's, 64 bytes.
    """
    return Standing(
        plan=position.plan(index),
        keys=position.keys(index, seed),
        oracle=oracle,
        predecessor_revoked=min(position.own_revoked, len(position.peer_secrets)) >= index,
        progress=_progress(position, index, signatures),
    )


def _progress(position: Position, index: int, signatures: Signatures | None) -> Progress:
    order_id, attempt = position.id, following(position, index)
    if attempt is None:
        return Progress(begun=tuple(_begun(position)))
    assert signatures is not None, "those of an attempt that reached R1 are kept until it is revoked"
    assert attempt.own_commit_signature is not None
    plan = position.plan(attempt.index)
    held = rollover.RolloverHeld(
        order_id,
        attempt.index,
        NextContract(plan, attempt.funding_rate),
        signatures,
        attempt.own_commit_signature,
        attempt.commit_txid,
    )
    # with the one that is held, the others that were begun are forgotten
    begun = rollover.RolloverBegun(order_id, attempt.index, attempt.salt, attempt.own.points, held.next)
    complete = leaves = revocation = None
    if attempt.commit_signature is not None:
        complete = rollover.RolloverComplete(order_id, attempt.index, attempt.commit_signature)
    if position.own_revoked > index:
        leaves = rollover.RevocationLeaves(order_id, index)
    if len(position.peer_secrets) > index:
        revocation = rollover.RevocationHeld(order_id, index, position.peer_secrets[index])
    return Progress((begun,), held, complete, leaves, revocation)


def _begun(position: Position) -> list[rollover.RolloverBegun]:
    return [
        rollover.RolloverBegun(position.id, each.index, each.salt, each.own, _offered(position, each))
        for each in position.begun
    ]


def _offered(position: Position, begun: RolloverBegun) -> NextContract | None:
    """Inputs and scripts, and with them the lock, are those of the setup."""
    if begun.following is None:
        return None
    setup, offered = position.attempts[0], begun.following
    assert setup.peer is not None
    own, peer = evolve(setup.own, points=begun.own), evolve(setup.peer, points=offered.peer)
    plan = position.plan_of(offered.terms, offered.announcements, begun.index, own, peer)
    return NextContract(plan, offered.funding_rate)
