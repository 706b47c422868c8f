"""Feeds and durable subscriptions, over each store."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from node.eventstore.interface import AlreadyHandled, Conflict, EventStore, NewEvent, Recorded
from node.eventstore.memory import MemoryBackend, run_memory_store
from node.eventstore.sqlite import run_store
from node.eventstore.subscriptions import BATCH, Feed, Subscription


def events(count: int) -> list[NewEvent]:
    return [NewEvent("OrderPlaced", 1, b"") for _ in range(count)]


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventStore]:
    run = partial(run_memory_store, MemoryBackend())
    if request.param == "sqlite":
        run = partial(run_store, tmp_path / "events.sqlite")
    async with trio.open_nursery() as nursery:
        yield await nursery.start(run)
        nursery.cancel_scope.cancel()


async def take(feed: Feed, count: int) -> list[int]:
    return [(await anext(feed)).id for _ in range(count)]


async def test_a_feed_gives_the_past_in_order_and_then_the_present(store: EventStore) -> None:
    await store.append("a", 0, events(2 * BATCH + 1))
    feed = Feed(store)
    assert await take(feed, 2 * BATCH + 1) == list(range(1, 2 * BATCH + 2))

    async with trio.open_nursery() as nursery:
        seen: list[int] = []

        async def go_on() -> None:
            seen.extend(await take(feed, 2))

        nursery.start_soon(go_on)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == []
        await store.append("b", 0, events(2))
    assert seen == [2 * BATCH + 2, 2 * BATCH + 3]
    assert await take(Feed(store, seen[0]), 1) == [seen[1]]


async def test_a_cancelled_step_loses_nothing(store: EventStore) -> None:
    await store.append("a", 0, events(3))
    feed = Feed(store)
    assert await take(feed, 1) == [1]
    with trio.CancelScope() as scope:
        scope.cancel()
        await anext(feed)
    assert await take(feed, 2) == [2, 3]
    with trio.move_on_after(0.01):
        await anext(feed)
    await store.append("a", 3, events(1))
    assert await take(feed, 1) == [4]


async def test_every_step_is_a_checkpoint(store: EventStore) -> None:
    await store.append("a", 0, events(3))
    feed, subscription = Feed(store), Subscription(store, "reactor")
    for step in (feed, feed, subscription, subscription):
        with trio.testing.assert_checkpoints():
            await anext(step)


async def test_a_subscription_begins_after_what_was_acknowledged(store: EventStore) -> None:
    await store.append("a", 0, events(5))
    first = Subscription(store, "reactor")
    assert await take(first, 2) == [1, 2]
    await first.ack((await store.read())[1])
    assert await take(first, 1) == [3]  # seen, not acknowledged: again after a restart

    assert await take(Subscription(store, "reactor"), 3) == [3, 4, 5]
    assert await take(Subscription(store, "another"), 1) == [1]
    assert await take(Subscription(store, "from now on", start=4), 1) == [5]
    assert await take(Subscription(store, "reactor", start=4), 1) == [3]  # the cursor has the last word


class Killed(Exception):
    """The process dies here."""


async def react(store: EventStore, reaction: Callable[[Subscription, Recorded], Awaitable[None]]) -> None:
    """A reactor's life, up to the end of the events called OrderPlaced."""
    subscription = Subscription(store, "reactor")
    async for recorded in subscription:
        if recorded.name == "End":
            return
        if recorded.name == "OrderPlaced":
            await reaction(subscription, recorded)


async def test_a_reaction_written_with_its_cursor_happens_exactly_once_whatever_dies(store: EventStore) -> None:
    """Dies at each of the places in turn, ten times over."""
    await store.append("a", 0, events(10))
    await store.append("a", 10, [NewEvent("End", 1, b"")])
    lives = 0

    async def reaction(subscription: Subscription, recorded: Recorded) -> None:
        if lives % 3 == 0 and recorded.id > lives // 3:
            raise Killed
        version = len(await store.load("reactions"))
        answer = NewEvent("SetupStarted", 1, b"%d" % recorded.id)
        await store.append("reactions", version, [answer], cursor=subscription.at(recorded))
        if lives % 3 == 1:
            raise Killed

    for lives in range(31):  # noqa: B007 - read by the reaction
        try:
            await react(store, reaction)
        except Killed:
            continue
        break
    else:
        pytest.fail("the reactor never came to the end")
    assert [recorded.data for recorded in await store.load("reactions")] == [b"%d" % i for i in range(1, 11)]


async def test_two_lives_of_one_reactor_at_once_still_write_once(store: EventStore) -> None:
    await store.append("a", 0, events(10))
    await store.append("a", 10, [NewEvent("End", 1, b"")])
    refused = 0

    async def reaction(subscription: Subscription, recorded: Recorded) -> None:
        nonlocal refused
        while True:
            version = len(await store.load("reactions"))
            answer = NewEvent("SetupStarted", 1, b"%d" % recorded.id)
            try:
                await store.append("reactions", version, [answer], cursor=subscription.at(recorded))
            except Conflict:
                continue
            except AlreadyHandled:
                refused += 1
            return

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(react, store, reaction)
    assert [recorded.data for recorded in await store.load("reactions")] == [b"%d" % i for i in range(1, 11)]
    assert refused == 10


async def test_a_reaction_in_the_world_happens_at_least_once(store: EventStore) -> None:
    await store.append("a", 0, events(4))
    await store.append("a", 4, [NewEvent("End", 1, b"")])
    done: Counter[int] = Counter()

    async def reaction(subscription: Subscription, recorded: Recorded) -> None:
        done[recorded.id] += 1
        if recorded.id == 3 and done[3] == 1:
            raise Killed
        await subscription.ack(recorded)

    with pytest.raises(Killed):
        await react(store, reaction)
    await react(store, reaction)
    assert done == {1: 1, 2: 1, 3: 2, 4: 1}


async def test_a_subscription_ends_with_its_store(tmp_path: Path) -> None:
    ended = trio.Event()

    async def listen(feed: Feed) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await anext(feed)
        ended.set()

    async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
        store: EventStore = await nursery.start(run_store, tmp_path / "events.sqlite")
        outer.start_soon(listen, Subscription(store, "reactor"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert ended.is_set()
