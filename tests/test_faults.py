"""Services that are killed, hang or are slow, outside worlds that fail, disks that are full, in nodes that trade, roll
over and close: the API answers throughout, everything comes back by itself, and the money is right. Real processes,
real HTTP; `python -m tests.faults` does it for as long as wanted."""

from pathlib import Path

import pytest

from tests.faults.matrix import Matrix, Options, run
from tests.faults.proxies import TROUBLES

SEED = 5


@pytest.mark.slow
async def test_every_service_and_every_outside_world(tmp_path: Path) -> None:
    async def strike(matrix: Matrix) -> None:
        await matrix.kill("world")
        await matrix.trouble(TROUBLES)
        await matrix.slow()
        await matrix.hang()
        await matrix.full_disk()
        await matrix.kill("bug")

    matrix = await run(tmp_path, SEED, Options(lasts=1.0, together=6), strike)
    for step in ("a trade", "a rollover", "a close"):
        assert matrix.business.done[step], matrix.business.done
    assert all(asking.answers["/health 200"] > 10 for asking in matrix.business.asking.values())
