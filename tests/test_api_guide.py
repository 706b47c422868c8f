"""docs/api-guide.md names every request that makers and takers answer, and no other."""

import re
from pathlib import Path

from tests.test_node import maker_on, taker_on

GUIDE = (Path(__file__).parent.parent / "docs" / "api-guide.md").read_text(encoding="utf-8")
UNDESCRIBED = {"GET ws", "GET openapi.json", "GET session", "POST session", "DELETE session", "PUT password"}
"""What OpenAPI cannot describe, or what is answered before the API is there."""
KEY = "dd" * 32


def in_guide() -> dict[str, set[str]]:
    """Who answers, by request."""
    rows = re.findall(r"^\| (`[^|]+`) \| (both|maker|taker) \|", GUIDE, re.MULTILINE)
    found = {request: who for cell, who in rows for request in re.findall(r"`([^`]+)`", cell)}
    return {request: {"maker", "taker"} if who == "both" else {who} for request, who in found.items()}


async def test_the_guide_and_the_api_name_the_same_requests(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        f'network = "regtest"\nelectrum = "127.0.0.1:1"\n[oracle]\nurl = "http://127.0.0.1:1"\n'
        f'announcement_key = "{KEY}"\nattestation_key = "{KEY}"\n'
    )
    answers: dict[str, set[str]] = {request: {"maker", "taker"} for request in UNDESCRIBED}
    async with maker_on(config, tmp_path / "maker") as (api, _):
        described = {"maker": await api.get("/openapi.json")}
        for request in ("session", "openapi.json"):
            await api.get(f"/{request}")
    async with taker_on(config, tmp_path / "taker") as api:
        described["taker"] = await api.get("/openapi.json")
    for role, description in described.items():
        for path, methods in description["paths"].items():
            for method in methods:
                answers.setdefault(f"{method.upper()} {path.removeprefix('/api/v1/')}", set()).add(role)
    for request in ("GET positions/{order_id}/close", "POST positions/{order_id}/close"):
        answers[request].discard("maker")  # it answers that takers do
    answers["POST positions/{order_id}/rollover"].discard("maker")
    assert in_guide() == answers
