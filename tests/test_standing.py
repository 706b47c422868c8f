"""What a rollover's dialogue begins with, as a position tells it: the same that its facts say (tests/rollovers.py)."""

from __future__ import annotations

import attrs
import pytest

from node.position.standing import following, in_question, index_to_roll, standing
from node.position.state import Position
from protocols.contract.signing import Signatures
from protocols.contract.terms import Role
from protocols.rollover import RolloverHeld
from tests.lives import do, opened, rollovers
from tests.positions import TRADER
from tests.setups import ORACLE

BOTH = pytest.mark.parametrize("role", Role)


def signatures(role: Role, index: int) -> Signatures:
    """The peer's of contract `index` + 1."""
    held = rollovers(2).node(role).about(index).held
    assert isinstance(held, RolloverHeld)
    return held.signatures


@BOTH
@pytest.mark.parametrize("index", [0, 1])
def test_it_is_what_the_facts_say_after_each_record(role: Role, index: int) -> None:
    facts = [fact for of_one in rollovers(2).facts[role] for fact in of_one]
    made = opened(role)
    whole = rollovers(2).node(role)
    for number in range(len(facts) + 1):
        if number:
            do(made, facts[number - 1])
        position = made.position
        known = attrs.evolve(whole, facts=[])
        for fact in facts[:number]:
            known.persist(fact)
        assert in_question(position, index) == (known.index - 1 <= index <= known.index)
        if not in_question(position, index):
            continue
        held = signatures(role, index) if following(position, index) is not None else None
        made_of_it = standing(position, index, held, seed=TRADER[role].seed, oracle=ORACLE)
        expected = known.standing(index)
        if expected.progress.held is not None:  # by then only the attempt that is signed is kept
            own = expected.progress.held.next.plan.party(role).points
            expected = attrs.evolve(
                expected, progress=attrs.evolve(expected.progress, begun=(made_of_it.progress.begun[0],))
            )
            assert made_of_it.progress.attempt(own).salt == known.about(index).attempt(own).salt
        assert made_of_it == expected


@BOTH
def test_the_rollover_to_go_on_with(role: Role) -> None:
    """That of the contract that stands, unless the last one is not finished."""
    made = opened(role)
    assert index_to_roll(made.position) == 0
    for index, records in enumerate(rollovers(2).facts[role]):
        for fact in records:
            assert index_to_roll(made.position) == index
            do(made, fact)
    assert index_to_roll(made.position) == 2


def test_there_is_none_before_there_is_a_contract() -> None:
    assert not in_question(Position(id=bytes(16)), 0)
