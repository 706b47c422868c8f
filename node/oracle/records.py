"""The oracle's announcements, kept for ever in the event store: one stream of one event for each."""

from attrs import frozen

from node.eventstore.interface import Conflict, EventStore, NewEvent
from node.supervision import Service

STREAM = "announcement/"


@frozen
class Announcements:
    """An `AnnouncementStore` (:mod:`node.oracle.client`)."""

    store: Service[EventStore]

    async def get(self, event: str) -> bytes | None:
        """The answer that was kept for the event of this id."""
        recorded = await self.store.call(EventStore.load, STREAM + event)
        return recorded[0].data if recorded else None

    async def put(self, event: str, raw: bytes) -> None:
        """Keep the first answer; a later one is never written."""
        try:
            await self.store.call(EventStore.append, STREAM + event, 0, [NewEvent("AnnouncementReceived", 1, raw)])
        except Conflict:
            return
