"""What `scripts/bench` prints and writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benches import Figure, start, summary, timed

ROOT = Path(__file__).parent.parent


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.benches", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("figure", "line"),
    [
        (Figure("CETs", 203, "CETs"), "CETs: 203 CETs"),
        (Figure("sign", 12.345, "ms", 200.5, "theirs", 0.25), "sign: 12.3 ms, theirs 200 ms, ratio 0.0616, spread 25%"),
        (Figure("appends", 25_000.4, "/s", spread=0), "appends: 25 000 /s, spread 0%"),
    ],
)
def test_a_figure_is_one_line(figure: Figure, line: str) -> None:
    assert str(figure) == line


def test_seconds_are_the_median_and_their_spread() -> None:
    measured = summary([1.0, 2.0, 4.0])
    assert (measured.median, measured.spread) == (2.0, 1.5)
    calls: list[None] = []
    timed(lambda: calls.append(None), times=3)
    assert len(calls) == 4


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["nothing_of_the_kind"], 2)])
def test_without_a_known_name_it_lists_what_can_be_measured(arguments: list[str], status: int) -> None:
    ended = bench(*arguments)
    assert ended.returncode == status
    assert "store" in ended.stdout + ended.stderr


@pytest.mark.slow
def test_the_figures_are_printed_and_written(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    ended = bench("store", "--json", file)
    rows = json.loads(file.read_text())
    assert ended.returncode == 0
    assert len(rows) == len(ended.stdout.splitlines()) == 5
    for row in rows:
        assert list(row) == ["bench", "name", "ours", "unit", "reference", "reference_name", "ratio", "spread"]
        assert row["bench"] == "store"
        assert row["reference"] is None or row["ratio"] == row["ours"] / row["reference"]


@pytest.mark.slow
def test_the_transport_is_measured_beside_another() -> None:
    ended = bench("transport", "--quick")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert all("ratio" in line for line in lines)
    measured = [line.split(": ")[1] for line in lines]
    assert len(set(measured)) == len(measured) == 19
    trips = next(line for line in lines if "connect over a slow wire" in line)
    # late it may be on a busy machine, early never
    assert float(trips.split(": ")[2].split()[0]) >= 2


@pytest.mark.slow
def test_a_start_with_a_history_is_measured() -> None:
    """Its positions are in the chain of a world, and all services become healthy with them."""
    page, healthy, memory = start.figures(rounds=1, positions=20, events=2_000)
    assert 0 < page.ours < healthy.ours
    assert memory.unit == "MB"
