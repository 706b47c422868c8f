"""The makers that a taker keeps links to: those of the configuration, and what its user added or took away since.

That is kept in a small file beside the events, written whole or not at all: it is a wish and no history, and a node
whose store is damaged must still find its makers.
"""

from __future__ import annotations

import json
from pathlib import Path

from attrs import frozen

from node import files
from node.network.address import PeerAddress, PeerId
from protocols.errors import LocalError

MOST_ADDRESSES = 8
"""Of one maker."""


@frozen
class Changes:
    """By the maker's identity in hex: addresses that were added, the newest first, and identities that were taken
    away."""

    added: dict[str, tuple[str, ...]]
    removed: tuple[str, ...] = ()

    def apply(self, configured: tuple[str, ...]) -> dict[PeerId, list[PeerAddress]]:
        """The makers that there are, with their addresses in the order in which they are dialled."""
        found: dict[PeerId, list[PeerAddress]] = {}
        kept = [address for address in map(PeerAddress.parse, configured) if str(address.peer) not in self.removed]
        for address in [PeerAddress.parse(text) for texts in self.added.values() for text in texts] + kept:
            found.setdefault(address.peer, [])
            if address not in found[address.peer]:
                found[address.peer].append(address)
        return found

    def with_maker(self, address: PeerAddress) -> Changes:
        identity, text = str(address.peer), str(address)
        others = (each for each in self.added.get(identity, ()) if each != text)
        added = {**self.added, identity: (text, *others)[:MOST_ADDRESSES]}
        return Changes(added, tuple(name for name in self.removed if name != identity))

    def without(self, peer: PeerId) -> Changes:
        added = {identity: texts for identity, texts in self.added.items() if identity != str(peer)}
        return Changes(added, tuple({*self.removed, str(peer)}))


def read_changes(data: Path) -> Changes:
    """What is kept in the data directory; nothing if that is damaged. Raises `OSError`."""
    try:
        kept = json.loads(files.makers_file(data).read_text(encoding="utf-8"))
        added = {str(identity): tuple(map(str, texts)) for identity, texts in kept["added"].items()}
        changes = Changes(added, tuple(kept["removed"]))
        changes.apply(())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, LocalError):
        return Changes({})
    return changes


def keep_changes(data: Path, changes: Changes) -> None:
    """Raises `OSError`."""
    text = json.dumps({"added": changes.added, "removed": sorted(changes.removed)}, indent=1)
    files.write_private(files.makers_file(data), text + "\n")
