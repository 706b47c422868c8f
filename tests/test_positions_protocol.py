"""``/cfd/positions/1``: what two sides say of the positions they share, and one that has lost part of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from attrs import define, evolve, field

from protocols import positions
from protocols.codec import Codec, wire_name
from protocols.contract import adaptor
from protocols.contract.keys import negated
from protocols.contract.schedule import HOUR
from protocols.contract.signing import sign_commit
from protocols.contract.terms import Role
from protocols.contract.transactions import ContractPlan, ContractTransactions
from protocols.dialogue import Fact
from protocols.errors import LocalError, PeerGone, Refused, RemoteProtocolError, WorldError
from protocols.positions import (
    COMMIT_SIZE,
    MESSAGES,
    PROOFS_EACH,
    PROTOCOL,
    STATES_EACH,
    FindSigned,
    PeerAhead,
    PositionState,
    PositionStates,
    Proof,
    Proofs,
    ProveIndex,
    Shared,
    SharedStates,
    Signed,
    prove,
    verify_proof,
)
from protocols.testing import End, Pair
from tests.lies import Lying, edit
from tests.rollovers import HOURS, NOW, ORDER_ID, Node, Nodes
from tests.setups import secret
from tests.test_rollover import computed_once  # noqa: F401  a fixture


@lru_cache(maxsize=1)
def rolled_twice() -> Nodes:
    """Contract 2 stands; 0 and 1 are revoked by both."""
    nodes = Nodes()
    for index in range(2):
        for node in nodes.both:
            node.now = NOW + index * HOURS * HOUR
        pair = nodes.roll(index)
        assert (pair.a.error, pair.b.error) == (None, None)
    return nodes


def back_then(node: Node, records: int) -> Node:
    """A backup of the node, from when it had written so much."""
    return Node(node.role, facts=node.facts[:records])


RECORDS = 5
"""What each writes down in a rollover: R0 to R4."""


def state_of(node: Node) -> PositionState:
    """As its facts say."""
    following = node.about(node.index).held
    indices = range(node.index + 1)
    return PositionState(
        ORDER_ID,
        complete=node.index,
        pending=following.commit_txid if following else b"",
        revoked=sum(node.about(index).leaves is not None for index in indices),
        held=sum(node.about(index).revocation is not None for index in indices),
    )


def signed_by(node: Node) -> Signed:
    plans = [node.plan(index) for index in range(node.index + 1)]
    following = node.about(node.index).held
    commits = {ContractTransactions(plan).commit_txid for plan in plans}
    return Signed(plans[0], node.role, frozenset(commits | ({following.commit_txid} if following else set())))


def proof_of(node: Node, index: int) -> Proof:
    return prove(node.plan(index), node.role, node.commit_signature(index))


@define(eq=False)
class Side:
    """A node's answers, and what it was told to remember. `others` are positions of which it knows just the state."""

    node: Node | None
    others: tuple[PositionState, ...] = ()
    facts: list[Fact] = field(factory=list)
    proved: int = 0

    def end(self, name: str, dialogue: Any) -> End:
        node = self.node

        def states(_: SharedStates) -> dict[bytes, PositionState]:
            own = (() if node is None else (state_of(node),)) + self.others
            return {each.order_id: each for each in own}

        def prove_index(ask: ProveIndex) -> Proof:
            assert node is not None
            assert (ask.order_id, ask.index) == (ORDER_ID, node.index)
            self.proved += 1
            return proof_of(node, ask.index)

        def find(ask: FindSigned) -> Signed:
            assert node is not None
            assert ask.order_id == ORDER_ID
            return signed_by(node)

        answers: dict[Any, Any] = {SharedStates: states, ProveIndex: prove_index, FindSigned: find}
        return End(name, dialogue, answers=answers, persist=self.facts.append)


def speak(taker: Side, maker: Side, codec: Codec = PROTOCOL.codec) -> Pair:
    return Pair(codec, taker.end("taker", positions.taker()), maker.end("maker", positions.maker()))


def spoken(taker: Side, maker: Side) -> tuple[tuple[Shared, ...], tuple[Shared, ...]]:
    taking, making = speak(taker, maker).run()
    assert (taking.error, making.error) == (None, None)
    return taking.result, making.result


def others(count: int, name: str = "another position") -> tuple[PositionState, ...]:
    return tuple(PositionState(secret(name, each)[:16], 3, b"", 3, 3) for each in range(count))


# --- both say the same ------------------------------------------------------------------------------------------------


def test_two_sides_that_agree_have_nothing_to_prove() -> None:
    nodes = rolled_twice()
    taker, maker = Side(nodes.taker), Side(nodes.maker)
    taking, making = spoken(taker, maker)
    state = PositionState(ORDER_ID, 2, b"", 2, 2)
    assert taking == making == (Shared(state, state),)
    assert taker.facts == maker.facts == []
    assert taker.proved == maker.proved == 0


def test_nothing_shared_is_said_in_four_messages() -> None:
    taking, making = speak(Side(None), Side(None)).run()
    assert taking.sent == making.sent == [PositionStates((), last=True), Proofs((), last=True)]
    assert taking.result == making.result == ()


@pytest.mark.parametrize("count", [0, 1, STATES_EACH, STATES_EACH + 1, 2 * STATES_EACH + 500])
def test_many_positions_go_in_several_messages(count: int) -> None:
    both, takers, makers = others(count), others(3, "the taker's alone"), others(3, "the maker's alone")
    taker, maker = Side(None, both + takers), Side(None, makers + both)
    pair = speak(taker, maker)
    taking, making = pair.run()
    assert taking.result == (*(Shared(each, each) for each in both), *(Shared(each, None) for each in takers))
    assert making.result == (*(Shared(each, None) for each in makers), *(Shared(each, each) for each in both))
    told = [message for message in taking.sent if isinstance(message, PositionStates)]
    assert len(told) == -(-(count + 3) // STATES_EACH)
    answered = {state.order_id for message in making.sent for state in getattr(message, "positions", ())}
    assert answered == {each.order_id for each in both}  # the maker tells of no other


def test_the_largest_messages_fit() -> None:
    state = PositionState(bytes(16), 2**32 - 1, bytes(32), 2**32 - 1, 2**32 - 1)
    proof = Proof(bytes(16), 2**32 - 1, bytes(COMMIT_SIZE), bytes(65), bytes(33))
    for message in (PositionStates((state,) * STATES_EACH, last=True), Proofs((proof,) * PROOFS_EACH, last=True)):
        assert len(PROTOCOL.codec.encode(message)) < PROTOCOL.codec.limit


# --- one is behind ----------------------------------------------------------------------------------------------------


def test_wherever_a_rollover_was_cut_nobody_has_lost_anything(computed_once: None) -> None:  # noqa: F811
    """What the one has more, the other knows of: it has signed it, and the rollover is finished in the ordinary way."""
    whole = Nodes().roll()
    pending = 0
    for steps_a in range(len(whole.a.trace) + 1):
        for steps_b in range(len(whole.b.trace) + 1):
            nodes = Nodes()
            pair = nodes.pair()
            reached = pair.run_to(steps_a, steps_b)
            pair.a.crash()
            pair.b.crash()
            if not reached:
                continue
            taker, maker = Side(nodes.taker), Side(nodes.maker)
            ends = speak(taker, maker).run()
            assert [end.error for end in ends] == [None, None]
            assert all(end.sent[-1] == Proofs((), last=True) for end in ends)
            assert taker.facts == maker.facts == []
            (taking,) = ends[0].result
            assert taking.peer is not None
            if taking.own.complete < taking.peer.complete:
                pending += 1
                assert taking.own.pending == ContractTransactions(nodes.maker.plan(1)).commit_txid
    assert pending > 0


@pytest.mark.parametrize("behind", Role)
@pytest.mark.parametrize("records", [0, RECORDS])
def test_a_side_whose_record_is_older_than_its_signatures_is_shown_so(behind: Role, records: int) -> None:
    nodes = rolled_twice()
    whole = {Role.TAKER: nodes.taker, Role.MAKER: nodes.maker}
    restored = back_then(whole[behind], records)
    sides = {behind: Side(restored), behind.other: Side(whole[behind.other])}
    taking, making = spoken(sides[Role.TAKER], sides[Role.MAKER])
    (fact,) = sides[behind].facts
    assert fact == PeerAhead(ORDER_ID, proof_of(whole[behind.other], 2))
    assert sides[behind.other].facts == []
    (shared,) = taking if behind is Role.TAKER else making
    assert shared.own.complete < 2
    assert shared.peer == state_of(whole[behind.other])


def test_a_proof_of_what_is_on_record_says_nothing() -> None:
    """It may have been written down while the two spoke."""
    nodes = rolled_twice()
    taker, maker = Side(back_then(nodes.taker, RECORDS)), Side(nodes.maker)
    pair = speak(taker, maker)
    pair.a.answers = {**pair.a.answers, FindSigned: lambda _: signed_by(nodes.taker)}
    assert [end.error for end in pair.run()] == [None, None]
    assert maker.proved == 1
    assert taker.facts == []


# --- the proof --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("index", range(3))
def test_what_was_signed_is_proven(role: Role, index: int) -> None:
    nodes = rolled_twice()
    prover, signer = (nodes.taker, nodes.maker) if role is Role.TAKER else (nodes.maker, nodes.taker)
    proof = proof_of(prover, index)
    assert len(proof.commit) == COMMIT_SIZE
    verify_proof(signed_by(back_then(signer, 0)), proof)


def other_lock(plan: ContractPlan) -> ContractPlan:
    (coin,) = plan.maker.inputs
    return evolve(plan, maker=evolve(plan.maker, inputs=(evolve(coin, vout=coin.vout + 1),)))


def bit(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def forgeries() -> dict[str, Proof]:
    """Of the maker, to the taker, who holds contract 0 only."""
    nodes = rolled_twice()
    honest, plan = proof_of(nodes.maker, 2), nodes.maker.plan(2)
    own = sign_commit(plan, Role.MAKER, nodes.maker.keys(2).fund)
    message, makers = ContractTransactions(plan).commit_hash, nodes.maker.keys(2).fund
    foreign = ContractTransactions(other_lock(plan))
    taker = nodes.taker.keys(2).fund
    other = adaptor.sign(taker, foreign.commit_hash, honest.publish)
    refund = ContractTransactions(plan).refund.serialize()
    changed = {f"commit byte {at}": evolve(honest, commit=bit(honest.commit, at)) for at in range(COMMIT_SIZE)}
    return {
        **changed,
        "no transaction": evolve(honest, commit=bytes(COMMIT_SIZE)),
        "another transaction": evolve(honest, commit=refund[:COMMIT_SIZE]),
        "the commit of another lock": evolve(honest, commit=foreign.commit.serialize(), signature=other),
        "another signature": evolve(honest, signature=bit(honest.signature, 40)),
        "signed by the prover": evolve(honest, signature=adaptor.sign(makers, message, honest.publish)),
        "encrypted to us": evolve(honest, signature=own),
        "another publish point": evolve(honest, publish=nodes.taker.plan(2).taker.points.publish),
        "the other half of it": evolve(honest, publish=negated(honest.publish)),
        "no point": evolve(honest, publish=b"\x02" + bytes(32)),
        "the signature of another contract": evolve(honest, signature=proof_of(nodes.maker, 1).signature),
    }


def test_what_was_not_signed_is_not_proven() -> None:
    signed = signed_by(back_then(rolled_twice().taker, 0))
    for name, proof in forgeries().items():
        with pytest.raises(RemoteProtocolError) as refused:
            verify_proof(signed, proof)
            pytest.fail(name)
        assert refused.value.code == "bad_proof", name


# --- lies -------------------------------------------------------------------------------------------------------------


def states(change: Callable[[list[Any]], Any]) -> Any:
    return edit("positions", lambda given: change(list(given)))


def proofs(**fields: Any) -> Any:
    return edit("proofs", lambda given: [{**given[0], **fields}])


def ahead() -> tuple[Side, Side]:
    """The taker's record is an old one."""
    nodes = rolled_twice()
    return Side(back_then(nodes.taker, RECORDS)), Side(nodes.maker)


LIES: dict[str, tuple[type[Any], Any, str, str]] = {
    "a position twice": (PositionStates, states(lambda given: given * 2), "bad_positions", "named twice"),
    "an unknown order": (PositionStates, states(lambda given: [{**given[0], "order_id": bytes(16)}]), "", "none that"),
    "a negative index": (PositionStates, states(lambda given: [{**given[0], "complete": -1}]), "malformed", "complete"),
    "half a txid": (PositionStates, states(lambda given: [{**given[0], "pending": bytes(16)}]), "malformed", "pending"),
    "an index that was not told": (Proofs, proofs(index=3), "bad_proof", "index is 3, allowed is 2"),
    "an index that we have": (Proofs, proofs(index=1), "bad_proof", "and more than 1"),
    "a proof of another order": (Proofs, proofs(order_id=bytes(16)), "bad_proof", "none that both told of"),
    "a proof twice": (Proofs, edit("proofs", lambda given: [*given, *given]), "bad_proof", "named twice"),
    "a doctored proof": (Proofs, proofs(signature=bytes(65)), "bad_proof", "not ours"),
    "a cut commit": (Proofs, proofs(commit=bytes(COMMIT_SIZE - 1)), "malformed", "commit"),
}


class MakerLies(Lying):
    """Changes the second message of a kind: the maker's, if both send one."""

    def encode(self, message: Any) -> bytes:
        if wire_name(type(message)) == self.kind and not self.lied:
            self.lied = True
            return Codec.encode(self, message)
        return super().encode(message)


@pytest.mark.parametrize("name", LIES)
def test_what_the_maker_says_is_checked(name: str) -> None:
    kind, change, code, words = LIES[name]
    taker, maker = ahead()
    codec = MakerLies(PROTOCOL.codec, wire_name(kind), change)
    taking, _ = speak(taker, maker, codec).run()
    assert isinstance(taking.error, RemoteProtocolError)
    assert taking.error.code == (code or "bad_positions")
    assert words in taking.error.sentence
    assert taker.facts == []


def test_what_the_taker_says_is_checked_too() -> None:
    """The checks are the same; a proof about a position that the maker does not have is another matter."""
    nodes = rolled_twice()
    taker, maker = Side(nodes.taker), Side(back_then(nodes.maker, 0))
    codec = Lying(PROTOCOL.codec, "proofs", proofs(signature=bytes(65)))
    taking, making = speak(taker, maker, codec).run()
    assert isinstance(making.error, RemoteProtocolError)
    assert making.error.code == "bad_proof"
    assert isinstance(taking.error, Refused)
    assert maker.facts == []


@pytest.mark.parametrize("kind", [PositionStates, Proofs])
def test_nobody_is_listened_to_for_ever(kind: type[Any]) -> None:
    dialogue = positions.maker()
    end = End("maker", dialogue, answers={SharedStates: lambda _: {}})
    end.begin()
    endless = PositionStates((), last=False) if kind is PositionStates else Proofs((), last=False)
    if kind is Proofs:
        end.give(PositionStates((), last=True))
        end.give({})
        end.give(None)
    for _ in range(MESSAGES):
        assert not end.done
        end.give(endless)
    assert isinstance(end.error, RemoteProtocolError)
    assert f"more than {MESSAGES} messages" in end.error.sentence


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", Role)
@pytest.mark.parametrize("lost", [True, False])
def test_wherever_the_stream_is_cut_the_next_time_tells_the_rest(behind: Role, lost: bool) -> None:
    nodes = rolled_twice()
    whole = {Role.TAKER: nodes.taker, Role.MAKER: nodes.maker}
    expected = [PeerAhead(ORDER_ID, proof_of(whole[behind.other], 2))]

    def sides() -> dict[Role, Side]:
        return {behind: Side(back_then(whole[behind], 0)), behind.other: Side(whole[behind.other])}

    trial = sides()
    whole_pair = speak(trial[Role.TAKER], trial[Role.MAKER])
    whole_pair.run()
    cuts = 0
    for steps_a in range(len(whole_pair.a.trace) + 1):
        for steps_b in range(len(whole_pair.b.trace) + 1):
            two = sides()
            pair = speak(two[Role.TAKER], two[Role.MAKER])
            if not pair.run_to(steps_a, steps_b):
                pair.a.dialogue.close()
                pair.b.dialogue.close()
                continue
            cuts += 1
            pair.cut(lost=lost)
            for end in pair.run():
                assert isinstance(end.error, PeerGone | None)
            assert two[behind].facts in ([], expected)
            assert two[behind.other].facts == []
            spoken(two[Role.TAKER], two[Role.MAKER])
            assert two[behind].facts[-1:] == expected
            assert set(two[behind].facts) == set(expected)
    assert cuts > len(whole_pair.a.trace)


@pytest.mark.parametrize("error", [LocalError("refused", "no"), WorldError("disk", "full")])
def test_what_cannot_be_written_ends_the_dialogue(error: LocalError | WorldError) -> None:
    taker, maker = ahead()
    pair = speak(taker, maker)

    def full(_: Fact) -> None:
        raise error

    pair.a.persist = full
    taking, _ = pair.run()
    assert taking.error is error
