"""The API of real nodes, asked by schemathesis what its own description allows and what it does not: no answer is a
500, and every error is a problem."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance

from tests.test_node import Api, maker_on, taker_on
from tests.worlds import running_world

EXAMPLES = 6
"""Of each operation, both of what is allowed and of what is not."""
APART = {
    ("get", "/api/v1/feed"),  # has no end
    ("get", "/api/v1/requests"),  # may wait for a minute
    ("post", "/api/v1/backup"),  # writes to whatever path is named
}


@pytest.mark.slow
async def test_no_request_makes_a_500(tmp_path: Path) -> None:
    async with (
        running_world(tmp_path / "world", hour=2) as world,
        maker_on(world.config, tmp_path / "maker") as (maker, node),
    ):
        await maker.healthy()
        async with taker_on(world.config, tmp_path / "taker", str(node.address)) as taker:
            await taker.healthy()
            for api in (maker, taker):
                description = await api.get("/openapi.json")
                found = await trio.to_thread.run_sync(_ask_everything, description, api)
                assert found == []


def _ask_everything(description: dict[str, Any], api: Api) -> list[str]:
    """What was answered with a bug, or with an error that is no problem."""
    schema = schemathesis.openapi.from_dict(description)
    base, headers = (
        str(api.http.base_url).removesuffix("/api/v1/"),
        {"Authorization": api.http.headers["authorization"]},
    )
    bad: list[str] = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result.err()
        operation = result.ok()
        if (operation.method, operation.path) in APART:
            continue
        for mode in GenerationMode:

            @seed(1)
            @settings(
                max_examples=EXAMPLES,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                answer = case.call(base_url=base, headers=headers, timeout=20)
                kind = answer.headers.get("content-type", [""])[0]
                if answer.status_code == 500 or (answer.status_code >= 400 and kind != "application/problem+json"):
                    bad.append(f"{case.method} {case.formatted_path} {case.query} {case.body}: {answer.text}"[:1000])
                try:
                    case.validate_response(answer, checks=[response_schema_conformance])
                except FailureGroup as wrong:
                    bad.append(str(wrong)[:1000])

            with suppress(Unsatisfiable):  # where nothing is asked for, nothing can be wrong
                ask()
    return bad
