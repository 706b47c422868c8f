"""Frozen event classes to bytes and back: a stable name, a version, and MessagePack maps of the fields.

Names and versions are chosen here, never taken from Python's names, so a class may be renamed or moved. An event that
changes its shape keeps its class and gets an upcaster: a function from the old map of plain values to the next
version's. What is in the store is never rewritten.

    codec = EventCodec()

    @codec.event("LockConfirmed", upcasters=(lambda v1: {**v1, "height": 0},))       # so this is version 2
    @frozen
    class LockConfirmed:
        txid: bytes
        height: int

Fields may be int, str, bytes, bool, enums, None, tuples, frozen classes of these, and unions of one of them and None.
Reading is exact: an unknown name, a version newer than this program's, a missing or unknown field, or a value of
another type is refused with `BadEvent`, which never shows a value (events hold salts).
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgpack
from attrs import frozen
from cattrs import BaseValidationError, transform_error
from cattrs.preconf.msgpack import make_converter

from node.eventstore.interface import Blob, NewEvent, Recorded
from protocols.errors import LocalError

E = TypeVar("E")
Plain = dict[str, Any]
Upcaster = Callable[[Plain], Plain]


class BadEvent(LocalError):
    """A stored event that this program cannot read."""


@frozen
class _Kind:
    name: str
    cls: type[object]
    upcasters: tuple[Upcaster, ...]

    @property
    def version(self) -> int:
        return len(self.upcasters) + 1


def _exactly(value: object, kind: type[E]) -> E:
    # by type, not isinstance: True is no number here
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, not {type(value).__name__}")
    return value


def _packed(plain: object) -> bytes:
    data = msgpack.packb(plain)
    assert isinstance(data, bytes)
    return data


class EventCodec:
    """A registry of event classes."""

    def __init__(self) -> None:
        self._by_name: dict[str, _Kind] = {}
        self._by_class: dict[type[object], _Kind] = {}
        self._converter = make_converter(forbid_extra_keys=True)
        for kind in (int, str, bytes, bool, float):
            self._converter.register_structure_hook(kind, _exactly)

    def event(self, name: str, *, upcasters: tuple[Upcaster, ...] = ()) -> Callable[[type[E]], type[E]]:
        """A class decorator that registers an event; the n-th upcaster turns version n into version n + 1."""

        def register(cls: type[E]) -> type[E]:
            if name in self._by_name:
                raise ValueError(f"there is already an event {name}")
            self._by_name[name] = self._by_class[cls] = _Kind(name, cls, upcasters)
            return cls

        return register

    @property
    def names(self) -> Mapping[str, int]:
        """The registered names, each with its present version."""
        return {name: kind.version for name, kind in self._by_name.items()}

    def encode(self, event: object, *blobs: Blob) -> NewEvent:
        """The event as the store takes it; the same event gives the same bytes. KeyError if it is not registered."""
        kind = self._by_class[type(event)]
        return NewEvent(kind.name, kind.version, _packed(self._converter.unstructure(event)), blobs)

    def decode(self, recorded: Recorded) -> Any:
        """The event, of its class as it is today. Raises `BadEvent`."""
        what = f"event {recorded.id} ({recorded.name} version {recorded.version})"
        kind = self._by_name.get(recorded.name)
        if kind is None:
            raise BadEvent("unknown_event", f"{what}: this program knows no event of this name")
        if not 1 <= recorded.version <= kind.version:
            raise BadEvent("unknown_event", f"{what}: this program knows versions 1 to {kind.version}")
        try:
            plain = msgpack.unpackb(recorded.data)
            for upcast in kind.upcasters[recorded.version - 1 :]:
                plain = upcast(plain)
            event = self._converter.structure(plain, kind.cls)
        except BaseValidationError as error:
            # not the cause: cattrs' own texts show values
            raise BadEvent("bad_event", f"{what}: {'; '.join(transform_error(error))}") from None
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise BadEvent("bad_event", f"{what}: not readable ({type(error).__name__})") from None
        # defaults for what is missing, and text taken for a tuple of letters, would pass up to here
        again = _packed(self._converter.unstructure(event))
        if again != recorded.data and msgpack.unpackb(again) != msgpack.unpackb(_packed(plain)):
            raise BadEvent("bad_event", f"{what}: does not stand for itself when it is written again")
        return event
