"""What a node says about itself."""

import json

import pytest

from node.causes import NOTHING, Cause, with_cause
from node.health import UNREPORTED, OfferedRepair, ServiceHealth, State, all_healthy, details, line

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
        (
            service(State.ENDING, reason="restarted by the user", remedy=f"{NOTHING}it ends by itself"),
            "chain        ending     for 3 min; restarted by the user; nothing to do: it ends by itself",
        ),
    ],
)
def test_a_line_for_people(record: ServiceHealth, told: str) -> None:
    assert line(record, NOW) == told


def test_more_lines_for_people_about_what_is_not_well() -> None:
    causes = (Cause("no answer", 1, NOW - 500, NOW - 500), Cause("it is damaged", 7, NOW - 300, NOW - 60))
    repairs = (
        OfferedRepair("resync", "look again", ""),
        OfferedRepair("move-aside", "move it aside", "it is not seen"),
    )
    record = service(State.BLOCKED, causes=causes, repairs=repairs, last_success=NOW - 600)
    assert details(record, NOW) == [
        "last well 10 min ago",
        "failed 7 times within 4 min, last 60 s ago: it is damaged",
        "failed 8 min ago: no answer",
        "repair resync: look again",
        "repair move-aside: move it aside (consequence: it is not seen; with --yes)",
    ]
    assert details(service(causes=causes, repairs=repairs), NOW) == []
    assert ServiceHealth.from_json(json.loads(json.dumps(record.as_json(NOW)))) == record


def test_causes_of_one_kind_are_one_with_their_count_and_times() -> None:
    causes = with_cause((), "away", "no answer from port 1", 1.0)
    causes = with_cause(causes, "full", "the disk is full", 2.0)
    causes = with_cause(causes, "away", "no answer from port 2", 3.0)
    assert causes == (
        Cause("the disk is full", 1, 2.0, 2.0, "full"),
        Cause("no answer from port 2", 2, 1.0, 3.0, "away"),
    )


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
