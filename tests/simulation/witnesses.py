"""How a proof names what turns red: tests by their ids, below tests/."""

from __future__ import annotations

_LIE = "test_a_lie_is_refused_with_a_named_code_on_both_sides"


def test(module: str, name: str) -> str:
    """A test, or with its parameters' id in brackets one case of it."""
    return f"test_{module}.py::test_{name}"


def hostile(name: str) -> str:
    """A hostile peer in the simulator (`tests.simulation.hostile`)."""
    return f"test_simulation_hostile.py::test_the_other_side_is_safe[{name}]"


def setup_lie(what: str) -> str:
    """A message of a contract setup that is changed on its way."""
    return f"test_contract_setup.py::{_LIE}[{what}]"


def rollover_lie(what: str) -> str:
    return f"test_rollover.py::{_LIE}[{what}]"


def settlement_lie(what: str) -> str:
    return f"test_settlement.py::{_LIE}[{what}]"


def refused(what: str) -> str:
    """A command that a position refuses."""
    return f"test_position.py::test_refusals_name_the_reason_and_the_position[{what}]"


def roll_refused(what: str) -> str:
    return f"test_position_rolling.py::test_refusals[{what}]"


def close_refused(what: str) -> str:
    return f"test_position_closing.py::test_refusals[{what}-Role.MAKER]"


def points_refused(what: str) -> str:
    return f"test_keys.py::test_points_are_refused[{what}]"
