"""What the oracle said, kept for ever in the event store: one stream of one event for each announcement, each first
attestation, and each proof that it contradicted itself."""

from enum import Enum
from hashlib import sha256

from attrs import frozen

from node.eventstore.interface import Conflict, EventStore, NewEvent
from node.supervision import Service


class Kind(Enum):
    """What is kept, by the event's id; the value is what the stream's name begins with."""

    ANNOUNCEMENT = "announcement/"
    """The oracle's first answer, byte for byte."""
    ATTESTATION = "attestation/"
    """The first answer whose attestation was verified, byte for byte."""
    CONTRADICTION = "contradiction/"
    """The first proof that the event was attested twice (`contradictions.write_proof`)."""


_NAMES = {
    Kind.ANNOUNCEMENT: "AnnouncementReceived",
    Kind.ATTESTATION: "AttestationReceived",
    Kind.CONTRADICTION: "OracleContradicted",
}


@frozen
class Announcements:
    """An `OracleRecords` (:mod:`node.oracle.client`)."""

    store: Service[EventStore]

    async def get(self, kind: Kind, event: str) -> bytes | None:
        """What was kept of this kind for the event of this id."""
        recorded = await self.store.call(EventStore.load, kind.value + event)
        if not recorded or recorded[0].version == 1:
            return recorded[0].data if recorded else None
        return (await self.store.call(EventStore.contents, [recorded[0].data])).get(recorded[0].data)

    async def put(self, kind: Kind, event: str, raw: bytes) -> None:
        """Keep the first; a later one is never written."""
        if kind is Kind.ANNOUNCEMENT:  # positions name it, too: it is kept once, and stands here by its SHA-256
            new = NewEvent(_NAMES[kind], 2, sha256(raw).digest(), contents=(raw,))
        else:
            new = NewEvent(_NAMES[kind], 1, raw)
        try:
            await self.store.call(EventStore.append, kind.value + event, 0, [new])
        except Conflict:
            return

    async def events(self, kind: Kind) -> list[str]:
        """The ids of all events of which something of this kind is kept."""
        streams = await self.store.call(EventStore.streams)
        return [name.removeprefix(kind.value) for name in streams if name.startswith(kind.value)]
