"""The makers that a taker keeps links to: those of the configuration, and what its user added or took away since.

That is kept in a small file beside the events, written whole or not at all: it is a wish and no history, and a node
whose store is damaged must still find its makers.
"""

from __future__ import annotations

import json
from pathlib import Path

from attrs import frozen

from node import files
from node.network.address import PeerAddress
from protocols.errors import LocalError


@frozen
class Changes:
    """By the maker's identity in hex: addresses that were added, and identities that were taken away."""

    added: dict[str, str]
    removed: tuple[str, ...] = ()

    def apply(self, configured: tuple[str, ...]) -> list[PeerAddress]:
        """The makers that there are."""
        found = {address.peer.key.hex(): address for address in map(PeerAddress.parse, configured)}
        found = {identity: address for identity, address in found.items() if identity not in self.removed}
        return list({**found, **{name: PeerAddress.parse(text) for name, text in self.added.items()}}.values())

    def with_maker(self, address: PeerAddress) -> Changes:
        identity = address.peer.key.hex()
        return Changes({**self.added, identity: str(address)}, tuple(name for name in self.removed if name != identity))

    def without(self, identity: bytes) -> Changes:
        name = identity.hex()
        added = {each: text for each, text in self.added.items() if each != name}
        return Changes(added, tuple({*self.removed, name}))


def read_changes(data: Path) -> Changes:
    """What is kept in the data directory; nothing if that is damaged. Raises `OSError`."""
    try:
        kept = json.loads(files.makers_file(data).read_text(encoding="utf-8"))
        changes = Changes({str(name): str(text) for name, text in kept["added"].items()}, tuple(kept["removed"]))
        changes.apply(())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, LocalError):
        return Changes({})
    return changes


def keep_changes(data: Path, changes: Changes) -> None:
    """Raises `OSError`."""
    text = json.dumps({"added": changes.added, "removed": sorted(changes.removed)}, indent=1)
    files.write_private(files.makers_file(data), text + "\n")
