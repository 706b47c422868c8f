"""Reading the store for ever: feeds for what lives in memory, subscriptions with a durable cursor for reactors.

    subscription = Subscription(store, "broadcaster")
    async for recorded in subscription:
        ...                                     # an idempotent reaction in the world outside, then
        await subscription.ack(recorded)        # at least once, or a reaction that is itself events:
        await store.append(stream, version, events, cursor=subscription.at(recorded))       # exactly once

A cursor says "everything up to here", so a reactor deals with events in their order, one at a time, and may skip
the ack of events that mean nothing to it: it sees them again after a restart. Neither kind ends: they wait for the next
event, and raise `trio.ClosedResourceError` when the store goes down.
"""

from collections import deque
from typing import Self

import trio

from node.eventstore.interface import Cursor, EventStore, Recorded

BATCH = 500


class Feed:
    """Every event with an id greater than `after_id`, for ever; none is missed when a step is cancelled."""

    def __init__(self, store: EventStore, after_id: int = 0) -> None:
        self._store = store
        self._after_id = after_id
        self._ahead: deque[Recorded] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Recorded:
        await trio.lowlevel.checkpoint()
        while not self._ahead:
            await self._store.wait_beyond(self._after_id)
            self._ahead.extend(await self._store.read(self._after_id, BATCH))
        recorded = self._ahead.popleft()
        self._after_id = recorded.id
        return recorded


class Subscription(Feed):
    """A feed that begins where the cursor called `name` stands; after `start` if there is no such cursor yet."""

    def __init__(self, store: EventStore, name: str, *, start: int = 0) -> None:
        super().__init__(store, start)
        self.name = name
        self._placed = False

    async def __anext__(self) -> Recorded:
        if not self._placed:
            stored = await self._store.cursor(self.name)
            if stored is not None:
                self._after_id = stored
            self._placed = True
        return await super().__anext__()

    def at(self, recorded: Recorded) -> Cursor:
        """The cursor that says "dealt with up to and including this one", for `EventStore.append`."""
        return Cursor(self.name, recorded.id)

    async def ack(self, recorded: Recorded) -> None:
        """Everything up to and including this event is dealt with."""
        await self._store.ack(self.at(recorded))
