"""The simulator and the tests see: without any one of the rules something turns red (`tests.simulation.proofs`)."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from node.position.state import Position
from tests.simulation.proofs import BROKEN, EVERY, GROUPS, ROOT, Proof, Verdict
from tests.simulation.removal import NothingToRemove, Removal, cut, late, put, swap, together

# --- taking something out ---------------------------------------------------------------------------------------------


def steps(done: list[str]) -> list[str]:
    done.append("first")
    if len(done) > 5:
        raise ValueError("too many")
    done.append("second")
    return done


@pytest.mark.parametrize(
    ("removed", "left"),
    [
        (cut(steps, 'done.append("first")'), ["second"]),
        (late(steps, 'done.append("first")', 'done.append("second")'), ["second", "first"]),
        (swap(steps, '"second"', '"third"'), ["first", "third"]),
        (together(swap(steps, '"first"', '"1"'), swap(steps, '"second"', '"2"')), ["1", "2"]),
        (together(), ["first", "second"]),
    ],
)
def test_what_is_taken_out_is_there_again_afterwards(removed: Removal, left: list[str]) -> None:
    with removed():
        assert steps([]) == left
    assert steps([]) == ["first", "second"]


def test_whole_blocks_go() -> None:
    with pytest.raises(ValueError, match="too many"):
        steps(list("abcde"))
    with cut(steps, "if len(done)")():
        assert len(steps(list("abcde"))) == 7


def test_properties_methods_and_names_too() -> None:
    position = Position(id=bytes(16))
    seen = [position.ended]
    with swap(Position.ended, "in ENDED", "not in ENDED")():
        seen.append(position.ended)
    seen.append(position.ended)
    with put(Position, "ended", True)():
        seen.append(position.ended)
    seen.append(position.ended)
    assert seen == [False, True, False, True, False]


@pytest.mark.parametrize(
    "removed", [cut(steps, "done.pop"), cut(steps, "done.append"), swap(steps, "done", "x"), late(steps, "x", "y")]
)
def test_what_is_not_there_once_is_not_taken_out(removed: Removal) -> None:
    with pytest.raises(NothingToRemove), removed():
        pass


# --- the rules --------------------------------------------------------------------------------------------------------


def test_every_rule_is_where_its_proof_looks() -> None:
    """A line that was changed says so here, and not after minutes."""
    for rule in EVERY:
        with rule.removed():
            pass


def test_every_rule_has_a_name_and_somebody_who_looks() -> None:
    assert [name for name, count in Counter(rule.name for rule in EVERY).items() if count > 1] == []
    assert [rule.name for rule in EVERY if not rule.seen_by] == []


def test_a_proof_is_one_only_if_everybody_turns_red_for_the_reason() -> None:
    rule = EVERY[0]
    red, green = Verdict("AssertionError", 0.1), Verdict(None, 0.1)
    assert Proof(rule, {"a": red, "b": red}).problem is None
    assert Proof(rule, {}).problem == "nobody looks"
    assert Proof(rule, {"a": red, "b": green}).problem == "b stays green"
    for word in BROKEN:
        problem = Proof(rule, {"a": Verdict(f"{word}: x", 0.1)}).problem
        assert problem is not None
        assert "another reason" in problem


def prove(*options: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation.proofs", "--jobs", "1", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_is_seen() -> None:
    """The machinery, on one; the slow suite has all of them."""
    prove("--proof", "7 nothing is revoked")


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_without_any_one_rule_something_turns_red(group: str) -> None:
    prove("--beside-tests", "--proof", group)
