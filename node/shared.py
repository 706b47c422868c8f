"""What both sides say of the positions that they share, first thing on each connection (`protocols.positions`)."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from node.network.conversation import Host
from node.position.book import Positions
from node.position.state import Position
from node.setup import Answers, SetupNode
from protocols.dialogue import Fact
from protocols.errors import LocalError
from protocols.positions import FindSigned, PositionState, Proof, ProveIndex, SharedStates, Signed, prove


@frozen
class SharedNode:
    """Answers for either role."""

    setup: SetupNode

    def host(self, peer: bytes) -> Host:
        async def states(_: SharedStates) -> Mapping[bytes, PositionState]:
            return self._states(peer)

        async def prove_index(ask: ProveIndex) -> Proof:
            position = self._position(ask.order_id, peer)
            signature = position.attempts[ask.index].commit_signature
            if signature is None:
                raise LocalError("not_complete", f"contract {ask.index} of this position is not complete")
            return prove(position.plan(ask.index), position.role, signature)

        async def find_signed(ask: FindSigned) -> Signed:
            position = self._position(ask.order_id, peer)
            commits = frozenset(position.commit_txid(each) for each in position.attempts)
            return Signed(position.plan(0), position.role, commits)

        async def persist(fact: Fact) -> None:
            await self.setup.positions.call(Positions.remember, fact, peer)

        answers: Answers = {SharedStates: states, ProveIndex: prove_index, FindSigned: find_signed}
        return Host(answers=answers, persist=persist, compute=self.setup.compute)

    def _states(self, peer: bytes) -> dict[bytes, PositionState]:
        with self.setup.positions.lent() as positions:
            return {
                position.id: _state(position)
                for position in positions.all()
                if position.peer == peer
                and position.contract is not None
                and position.commit is None
                and position.ending is None
                and not position.over
            }
        raise AssertionError("a recalled loan raises")

    def _position(self, order_id: bytes, peer: bytes) -> Position:
        with self.setup.positions.lent() as positions:
            position = positions.get(order_id)
        assert position is not None, "the dialogue asks about those of `SharedStates`"
        assert position.peer == peer
        return position


def _state(position: Position) -> PositionState:
    contract, last = position.contract, position.attempts[-1]
    assert contract is not None
    pending = last.commit_txid if last.index > contract.index else b""
    return PositionState(position.id, contract.index, pending, position.own_revoked, len(position.peer_secrets))
