"""A request under a key is carried out once: asked again, asked otherwise, cut off, and after the node was killed."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
import trio
from fastapi import APIRouter
from pydantic import BaseModel

from node.clock import Clock
from node.config import HostPort
from node.errors import Conflict
from node.web.idempotency import KEPT_FOR, Asked, Book
from node.web.server import create_app, serve
from node.web.sockets import bind_api, url_of

TOKEN = "t" * 43


class Paid(BaseModel):
    amount: int


class Till:
    """Counts what was paid; may be slow, and refuses to take 13."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.slow = 0.0

    def router(self) -> APIRouter:
        router = APIRouter()

        @router.post("/pay", status_code=202)
        async def pay(paid: Paid) -> dict[str, int]:
            self.taken.append(paid.amount)
            await trio.sleep(self.slow)
            if paid.amount == 13:
                raise Conflict("unlucky", "13 is not taken")
            return {"number": len(self.taken)}

        return router


@asynccontextmanager
async def api(till: Till, book: Book) -> AsyncIterator[httpx2.AsyncClient]:
    with bind_api(HostPort("127.0.0.1", 0)) as listener:
        app = create_app([till.router()], token=TOKEN, sockets=[listener], answers=book)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, app, [listener])
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with httpx2.AsyncClient(base_url=url_of(listener), headers=headers) as client:
                yield client
            nursery.cancel_scope.cancel()


async def pay(client: httpx2.AsyncClient, amount: object, *keys: str) -> httpx2.Response:
    return await client.post("/pay", json={"amount": amount}, headers=[("Idempotency-Key", key) for key in keys])


async def test_the_same_request_is_answered_alike_and_done_once(tmp_path: Path) -> None:
    till, path = Till(), tmp_path / "answers"
    async with api(till, Book(path, Clock())) as client:
        first, again = [await pay(client, 5, "k") for _ in range(2)]
        assert (first.status_code, first.json()) == (again.status_code, again.json()) == (202, {"number": 1})
        assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
        other = await pay(client, 6, "k")
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_used")
        refused, refused_again = [await pay(client, 13, "x") for _ in range(2)]
        assert refused.json() == refused_again.json()
        assert refused_again.headers["content-type"] == "application/problem+json"
        malformed = await pay(client, "many", "m")
        assert malformed.status_code == 422
        assert till.taken == [5, 13]
        await pay(client, 5)
        await pay(client, 5)
        assert till.taken == [5, 13, 5, 5]  # without a key each is a request of its own
    async with api(till, Book(path, Clock())) as client:  # the node was started anew
        assert (await pay(client, 5, "k")).json() == {"number": 1}
    assert till.taken == [5, 13, 5, 5]
    assert path.stat().st_mode & 0o077 == 0


async def test_two_at_once_are_one(tmp_path: Path) -> None:
    till = Till()
    till.slow = 0.1
    answers: list[object] = []
    async with api(till, Book(tmp_path / "answers", Clock())) as client:

        async def ask() -> None:
            answers.append((await pay(client, 5, "k")).json())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
    assert (till.taken, answers) == ([5], [{"number": 1}] * 2)


async def test_what_was_begun_and_not_answered_is_not_begun_again(tmp_path: Path) -> None:
    till, path = Till(), tmp_path / "answers"
    async with api(till, Book(path, Clock())) as client:
        await pay(client, 5, "k")
    begun = next(json.loads(line) for line in path.read_text().splitlines() if line)
    path.write_text(json.dumps(begun) + '\n{"key": "cut of')  # as a kill left it
    async with api(till, Book(path, Clock())) as client:
        unknown = await pay(client, 5, "k")
        assert (unknown.status_code, unknown.json()["code"]) == (409, "outcome_unknown")
        assert (await pay(client, 6, "new")).status_code == 202
    async with api(till, Book(path, Clock())) as client:
        assert (await pay(client, 6, "new")).json() == {"number": 2}
    assert till.taken == [5, 6]


async def test_a_key_that_cannot_be_kept_does_nothing(tmp_path: Path) -> None:
    till = Till()
    async with api(till, Book(tmp_path / "missing" / "answers", Clock())) as client:
        answer = await pay(client, 5, "k")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_written")
    assert till.taken == []


@pytest.mark.parametrize("keys", [("",), ("x" * 201,), ("a b",), ("a", "b")])
async def test_what_is_no_key(keys: tuple[str, ...], tmp_path: Path) -> None:
    till = Till()
    async with api(till, Book(tmp_path / "answers", Clock())) as client:
        answer = await pay(client, 5, *keys)
        assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")
    assert till.taken == []


async def test_keys_are_forgotten_after_a_day(tmp_path: Path) -> None:
    now = 1_000_000.0
    book = Book(tmp_path / "answers", Clock(wall=lambda: now))
    assert await book.find("k") is None
    await book.note(Asked("k", "hash", now))
    assert await book.find("k") is not None
    now += KEPT_FOR
    assert await book.find("k") is None
    assert await Book(book.path, book.clock).find("k") is None
    assert book.path.read_text() == ""
