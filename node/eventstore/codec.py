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

What many events have in common, as the oracle's announcements, is written once for all of them: a field of type
``tuple[bytes, ...]`` that is marked `SHARED` holds the SHA-256 of each piece in the store, and the pieces go into
`NewEvent.contents`. A piece is never 32 bytes long, so one that stands there itself, as in older versions, is known.

Fields may be int, str, bytes, bool, enums, None, tuples, frozen classes of these, and unions of one of them and None.
Reading is exact: an unknown name, a version newer than this program's, a missing or unknown field, or a value of
another type is refused with `BadEvent`, which never shows a value (events hold salts).
"""

from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import Any, TypeVar, get_args

import attrs
import msgpack
from attrs import frozen
from cattrs import BaseValidationError, transform_error
from cattrs.preconf.msgpack import make_converter

from node.eventstore.interface import Blob, NewEvent, Recorded, Unreadable

E = TypeVar("E")
Plain = dict[str, Any]
Upcaster = Callable[[Plain], Plain]
Path = tuple[str, ...]
"""The names of fields that lead from an event to one within it."""

SHARED: Mapping[str, bool] = {"shared": True}
"""Metadata of a field whose pieces are kept beside the event."""
_DIGEST = 32


class BadEvent(Unreadable):
    """A stored event that this program cannot read."""


@frozen
class _Kind:
    name: str
    cls: type[object]
    upcasters: tuple[Upcaster, ...]
    shared: tuple[Path, ...]

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


def _shared_fields(cls: type[Any]) -> Iterator[Path]:
    attrs.resolve_types(cls)
    for each in attrs.fields(cls):
        if each.metadata.get("shared"):
            yield (each.name,)
        for kind in (each.type, *get_args(each.type)):
            if isinstance(kind, type) and attrs.has(kind):
                yield from ((each.name, *path) for path in _shared_fields(kind))


def _change(plain: Plain, path: Path, change: Callable[[list[bytes]], list[bytes]]) -> Plain:
    """`plain` with another list of bytes at the end of the path, if there is one."""
    first, *rest = path
    found = plain.get(first)
    if rest:
        return {**plain, first: _change(found, tuple(rest), change)} if isinstance(found, dict) else plain
    if not isinstance(found, list | tuple) or not all(isinstance(piece, bytes) for piece in found):
        return plain
    return {**plain, first: change(list(found))}


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
            self._by_name[name] = self._by_class[cls] = _Kind(name, cls, upcasters, tuple(_shared_fields(cls)))
            return cls

        return register

    @property
    def names(self) -> Mapping[str, int]:
        """The registered names, each with its present version."""
        return {name: kind.version for name, kind in self._by_name.items()}

    def name(self, cls: type[object]) -> str:
        """Under which events of this class are stored."""
        return self._by_class[cls].name

    def encode(self, event: object, *blobs: Blob) -> NewEvent:
        """The event as the store takes it; the same event gives the same bytes. KeyError if it is not registered."""
        kind = self._by_class[type(event)]
        plain: Plain = self._converter.unstructure(event)
        pieces: list[bytes] = []
        named = _named(plain, kind, pieces)
        return NewEvent(kind.name, kind.version, _packed(named), blobs, tuple(dict.fromkeys(pieces)))

    def needs(self, recorded: Recorded) -> frozenset[bytes]:
        """The SHA-256 of each piece that `decode` has to be given. Raises `BadEvent`."""
        kind = self._kind(recorded)
        needed: set[bytes] = set()

        def note(pieces: list[bytes]) -> list[bytes]:
            needed.update(piece for piece in pieces if len(piece) == _DIGEST)
            return pieces

        if kind.shared:
            plain = self._plain(recorded, kind)
            for path in kind.shared:
                _change(plain, path, note)
        return frozenset(needed)

    def decode(self, recorded: Recorded, contents: Mapping[bytes, bytes] = MappingProxyType({})) -> Any:
        """The event, of its class as it is today; `contents` has what it `needs`. Raises `BadEvent`."""
        kind = self._kind(recorded)
        plain = self._plain(recorded, kind)

        def whole(pieces: list[bytes]) -> list[bytes]:
            return [contents[piece] if len(piece) == _DIGEST else piece for piece in pieces]

        what = _what(recorded)
        try:
            full = plain
            for path in kind.shared:
                full = _change(full, path, whole)
            event = self._converter.structure(full, kind.cls)
        except BaseValidationError as error:
            # not the cause: cattrs' own texts show values
            raise BadEvent("bad_event", f"{what}: {'; '.join(transform_error(error))}") from None
        except KeyError:
            raise BadEvent("content_missing", f"{what}: what it shares with others is missing") from None
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise BadEvent("bad_event", f"{what}: not readable ({type(error).__name__})") from None
        # defaults for what is missing, and text taken for a tuple of letters, would pass up to here
        again = _packed(_named(self._converter.unstructure(event), kind, []))
        if again != recorded.data and msgpack.unpackb(again) != msgpack.unpackb(_packed(_named(plain, kind, []))):
            raise BadEvent("bad_event", f"{what}: does not stand for itself when it is written again")
        return event

    def bare(self, recorded: Recorded) -> Any:
        """As `decode`, with nothing in the fields that are shared with others. Raises `BadEvent`."""
        kind = self._kind(recorded)
        plain = self._plain(recorded, kind)
        for path in kind.shared:
            plain = _change(plain, path, lambda _: [])
        return self.decode(attrs.evolve(recorded, version=kind.version, data=_packed(plain)))

    def _kind(self, recorded: Recorded) -> _Kind:
        kind = self._by_name.get(recorded.name)
        if kind is None:
            raise BadEvent("unknown_event", f"{_what(recorded)}: this program knows no event of this name")
        if not 1 <= recorded.version <= kind.version:
            raise BadEvent("unknown_event", f"{_what(recorded)}: this program knows versions 1 to {kind.version}")
        return kind

    @staticmethod
    def _plain(recorded: Recorded, kind: _Kind) -> Plain:
        """The fields as they are called today."""
        try:
            plain: Plain = msgpack.unpackb(recorded.data)
            for upcast in kind.upcasters[recorded.version - 1 :]:
                plain = upcast(plain)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise BadEvent("bad_event", f"{_what(recorded)}: not readable ({type(error).__name__})") from None
        if not isinstance(plain, dict):
            raise BadEvent("bad_event", f"{_what(recorded)}: not readable (no fields)")
        return plain


def _named(plain: Plain, kind: _Kind, pieces: list[bytes]) -> Plain:
    """With the SHA-256 of each shared piece in its place; the pieces are added to `pieces`."""

    def name(found: list[bytes]) -> list[bytes]:
        pieces.extend(piece for piece in found if len(piece) != _DIGEST)
        return [piece if len(piece) == _DIGEST else sha256(piece).digest() for piece in found]

    for path in kind.shared:
        plain = _change(plain, path, name)
    return plain


def _what(recorded: Recorded) -> str:
    return f"event {recorded.id} ({recorded.name} version {recorded.version})"


def unchanged(plain: Plain) -> Plain:
    """The upcaster of an event whose pieces came to be shared: where they stand themselves they are read as before."""
    return plain
