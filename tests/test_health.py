"""What a node says about itself."""

import pytest

from node.health import UNREPORTED, ServiceHealth, State, all_healthy, line

NOW = 1_700_000_000.0


def service(state: State = State.HEALTHY, **members: object) -> ServiceHealth:
    return ServiceHealth(**{"name": "chain", "state": state, "since": NOW - 180, **members})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (service(), "chain        healthy    for 3 min"),
        (
            service(State.RESTARTING, reason="connection refused", next_try=NOW + 12, since=NOW - 1, bugs=2),
            "chain        restarting for 1 s; connection refused; next try in 12 s; bugs 2",
        ),
        (
            service(State.BLOCKED, reason="the store is damaged", remedy="restore a backup", since=NOW - 7300),
            "chain        blocked    for 2 h; the store is damaged; you can: restore a backup",
        ),
        (
            service(State.DEGRADED, reason="no block since long", data_at=NOW - 86400 * 3, since=NOW + 5),
            "chain        degraded   for 0 s; no block since long; data 3 d old",
        ),
    ],
)
def test_a_line_for_people(record: ServiceHealth, told: str) -> None:
    assert line(record, NOW) == told


def test_a_record_survives_its_json_and_fields_of_later_versions() -> None:
    record = service(State.WAITING, reason="waits for store", needs=("store", "clock"), data_at=NOW, failures=3)
    assert ServiceHealth.from_json({**record.as_json(NOW), "mood": "hopeful"}) == record


@pytest.mark.parametrize("state", list(State))
def test_only_healthy_is_healthy_and_each_state_leaves_the_user_something_to_do(state: State) -> None:
    record = service(state)
    assert all_healthy([service(), record]) is (state is State.HEALTHY)
    assert record.actions == (("start",) if state in {State.STOPPED, State.ENDING} else ("restart", "stop"))


def test_a_part_that_runs_without_a_service_may_report_all_the_same() -> None:
    UNREPORTED.degraded("alone")
    UNREPORTED.recovered()
    UNREPORTED.fresh()
