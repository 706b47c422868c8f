"""scripts/desk_bot DATA: an example of a bot at a maker's desk, by the HTTP API alone (docs/maker.md).

For a maker that runs with ``--accept manual``. Orders of up to 1 000 contracts are accepted; rollovers and closes as
the maker's own rules say. The funding rate leans against the exposure: those on the crowded side pay.
"""

from __future__ import annotations

import argparse
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import trio

LARGEST = 1_000
"""Contracts of an order that the bot accepts."""
LEAN = Decimal("0.0005")
"""The funding rate per 24 h at the largest exposure that the policy allows."""
RATE_EVERY = 3600.0
WAIT = 30
"""Seconds that the maker may keep a question for news."""


def refusal(request: dict[str, Any]) -> str | None:
    """Why the bot does not want this; here is the place for rules of one's own."""
    if request["kind"] == "order" and request["quantity"] > LARGEST:
        return f"at most {LARGEST} contracts at a time"
    return None


def leaning(exposure: int, most: int) -> str:
    """A maker that is long is paid by those who are short, and the other way round."""
    rate = (-LEAN * exposure / most).quantize(Decimal("1e-8")).normalize() + 0  # no minus before nothing
    return format(rate, "f")


async def answer_requests(maker: httpx2.AsyncClient) -> NoReturn:
    seen: dict[str, int] = {}
    while True:
        answer = await maker.get("/requests", params={"wait": WAIT, **seen}, timeout=WAIT + 10)
        news = answer.raise_for_status().json()
        seen = {"after": news["number"]}
        for request in news["requests"]:
            sentence = refusal(request)
            path = f"/requests/{request['id']}/{'accept' if sentence is None else 'reject'}"
            said = await maker.post(path, json=None if sentence is None else {"sentence": sentence})
            # 404: the taker is gone; 409: the maker's rules say no by now
            print(request["kind"], request["order_id"], said.json().get("detail") or sentence or "accepted", flush=True)


async def keep_rates(maker: httpx2.AsyncClient) -> NoReturn:
    while True:
        about = (await maker.get("/maker")).raise_for_status().json()
        for symbol, most in about["max_exposure"].items():
            rate = leaning(about["exposure"][symbol], most)
            (await maker.put(f"/rates/{symbol}", json={"funding_rate": rate})).raise_for_status()
        await trio.sleep(RATE_EVERY)


async def run(maker: httpx2.AsyncClient) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_rates, maker)
        nursery.start_soon(answer_requests, maker)


async def main(data: Path) -> None:
    try:
        url, token = (data / "api.url").read_text().strip(), (data / "api.token").read_text().strip()
    except OSError as error:
        sys.exit(f"scripts/desk_bot: {error.filename}: {error.strerror}; is the node running?")
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(base_url=f"{url}/api/v1", headers=headers, trust_env=False) as maker:
        await run(maker)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/desk_bot", description="A bot at a maker's desk, as an example.")
    parser.add_argument("data", type=Path, metavar="DATA", help="the maker's data directory")
    trio.run(main, parser.parse_args().data)
