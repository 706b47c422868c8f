"""A position to bytes and back, so that a start need not replay what happened long ago.

A snapshot is never the truth: it is what the events up to its version add up to, and whatever is wrong with one, the
events are replayed instead (`BadSnapshot`). Its `FORM` says by which classes, and by which `evolve`, it was made: those
of another program version are not read at all.

The oracle's announcements are not in it, but their SHA-256: the store keeps each of them once (`NewEvent.contents`).
Beside the position it holds all points that its events ever named, since `evolve` forgets some of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from hashlib import sha256
from typing import Any, TypeVar, get_args

import attrs
import msgpack
from attrs import AttrsInstance, frozen
from cattrs import BaseValidationError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override
from cattrs.preconf.msgpack import make_converter

from node.position import evolve
from node.position.state import Attempt, Position
from protocols.contract.keys import Points
from protocols.contract.terms import Terms, Timelocks
from protocols.contract.transactions import Party
from protocols.errors import LocalError
from protocols.offers import Offer, OracleKeys

E = TypeVar("E", bound=AttrsInstance)
Plain = dict[str, Any]

_DIGEST = 32
_POINT = 33


class BadSnapshot(LocalError):
    """Damaged, or it refers to what is not there."""


def _made(cls: type[E], values: Plain) -> E:
    """How unpickling makes one: it was checked when it was made, and to check it again costs more than all the rest."""
    made: Any = object.__new__(cls)
    made.__setstate__(values)
    assert isinstance(made, cls)
    return made


def _unchecked(cls: type[E]) -> Callable[[Plain, object], E]:
    attrs.resolve_types(cls)
    hooks = [(each.name, each.type, _CONVERTER.get_structure_hook(each.type)) for each in attrs.fields(cls)]
    return lambda plain, _: _made(cls, {name: hook(plain[name], kind) for name, kind, hook in hooks})


def _short(attempt: Attempt, setup: Attempt) -> Plain:
    """A rollover's: what differs from the setup's. Most of a position that is old consists of these."""
    points = [[point for _, point in party.points.each()] for party in (attempt.own, attempt.peer) if party is not None]
    terms = {name: value for name in _TERMS if (value := getattr(attempt.terms, name)) != getattr(setup.terms, name)}
    return {"announcements": attempt.announcements, "points": points, "terms": terms} | {
        name: getattr(attempt, name) for name in _OWN
    }


def _long(plain: Plain, setup: Attempt, terms: Plain) -> Attempt:
    """`terms`: the setup's."""
    ours, peers = (Points(*each) for each in plain["points"])
    own, peer = setup.own, setup.peer
    assert peer is not None
    return Attempt(
        terms=_made(Terms, {**terms, **plain["terms"]}) if plain["terms"] else setup.terms,
        announcements=plain["announcements"],
        own=Party(ours, own.inputs, own.change_script, own.payout_script),
        peer=Party(peers, peer.inputs, peer.change_script, peer.payout_script),
        **{name: plain[name] for name in _OWN},
    )


def _unstructure_attempts(attempts: tuple[Attempt, ...]) -> list[Plain]:
    plains: list[Plain] = []
    for attempt in attempts:
        if plains and attempt.peer is not None and attempts[0].peer is not None:
            short = _short(attempt, attempts[0])
            if all(type(value) in (int, str) for value in short["terms"].values()) and (
                _long(short, attempts[0], _values(attempts[0].terms)) == attempt
            ):
                plains.append(short)
                continue
        plains.append(_CONVERTER.unstructure(attempt))
    return plains


def _structure_attempts(plains: list[Plain], _: object) -> tuple[Attempt, ...]:
    attempts: list[Attempt] = []
    terms: Plain = {}
    for plain in plains:
        if "points" in plain:
            terms = terms or _values(attempts[0].terms)
            attempts.append(_long(plain, attempts[0], terms))
        else:
            attempts.append(_CONVERTER.structure(plain, Attempt))
    return tuple(attempts)


def _values(terms: Terms) -> Plain:
    return {name: getattr(terms, name) for name in _TERMS}


_OWN = tuple(each.name for each in attrs.fields(Attempt) if each.name not in ("terms", "announcements", "own", "peer"))
"""Of an attempt, what is its own and plain."""
_TERMS = tuple(each.name for each in attrs.fields(Terms))
_CONVERTER = make_converter(forbid_extra_keys=True, detailed_validation=False)
for _checked in (Timelocks, OracleKeys, Terms, Offer):
    _CONVERTER.register_structure_hook(_checked, _unchecked(_checked))
_CONVERTER.register_unstructure_hook(
    Position,
    make_dict_unstructure_fn(
        Position, _CONVERTER, _plans=override(omit=True), attempts=override(unstruct_hook=_unstructure_attempts)
    ),
)
_CONVERTER.register_structure_hook(
    Position,
    make_dict_structure_fn(
        Position,
        _CONVERTER,
        _cattrs_forbid_extra_keys=True,
        _plans=override(omit=True),
        attempts=override(struct_hook=_structure_attempts),
    ),
)


@frozen
class Snapshot:
    """What is read from bytes, but for the announcements."""

    needs: frozenset[bytes]
    """The SHA-256 of each announcement that it refers to."""
    points: frozenset[bytes]
    """All that its events named, 33 bytes each."""
    _named: tuple[bytes, ...]
    """Hashes of announcements one after another; the position names these by their place here."""
    _plain: Plain

    def position(self, contents: Mapping[bytes, bytes]) -> Position:
        """The position; `contents` has the announcements by hash. Raises `BadSnapshot`."""
        try:
            named = [_announcements(each, contents) for each in self._named]
            for place in _places(self._plain):
                place["announcements"] = named[place["announcements"]]
            position = _CONVERTER.structure(self._plain, Position)
        except (ValueError, TypeError, LookupError, AttributeError, BaseValidationError) as error:
            raise BadSnapshot("bad_snapshot", f"a snapshot cannot be read ({type(error).__name__})") from None
        assert isinstance(position, Position)
        return position


def encode(position: Position, points: Iterable[bytes]) -> bytes:
    """`points`: all that its events ever named."""
    plain: Plain = _CONVERTER.unstructure(position)
    named: dict[bytes, int] = {}
    for place in _places(plain):
        hashes = b"".join(map(_hash, place["announcements"]))
        place["announcements"] = named.setdefault(hashes, len(named))
    data: bytes = msgpack.packb([list(named), b"".join(sorted(points)), plain])
    return sealed(data)


def sealed(data: bytes) -> bytes:
    return sha256(data).digest() + data


def decode(data: bytes) -> Snapshot:
    """Raises `BadSnapshot`."""
    digest, data = data[:_DIGEST], data[_DIGEST:]
    if sha256(data).digest() != digest:
        raise BadSnapshot("bad_snapshot", "a snapshot is damaged")
    named, points, plain = msgpack.unpackb(data)
    needs = frozenset(each for hashes in named for each in _names(hashes))
    return Snapshot(needs, frozenset(_cut(points, _POINT)), tuple(named), plain)


def _places(plain: Plain) -> Iterator[Plain]:
    """What names announcements."""
    yield plain
    yield from plain["attempts"]
    for begun in plain["begun"]:
        if begun["following"] is not None:
            yield begun["following"]


def _announcements(hashes: bytes, contents: Mapping[bytes, bytes]) -> tuple[bytes, ...]:
    """Positions that expire together name the same ones: once they are read, they are at hand, whoever asks."""
    known = _known.get(hashes)
    if known is None:
        known = evolve.shared(tuple(contents[each] for each in _names(hashes)))
        if len(_known) >= KNOWN:
            _known.clear()
        _known[hashes] = known
    return known


_known: dict[bytes, tuple[bytes, ...]] = {}
KNOWN = 1 << 12


@lru_cache(maxsize=KNOWN)
def _names(hashes: bytes) -> tuple[bytes, ...]:
    return tuple(_cut(hashes, _DIGEST))


@lru_cache(maxsize=1 << 12)
def _hash(announcement: bytes) -> bytes:
    return sha256(announcement).digest()


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def shape(kind: object, seen: set[object] | None = None) -> Iterator[str]:
    """Everything about a type that its bytes depend on."""
    seen = set() if seen is None else seen
    if kind in seen:
        return
    seen.add(kind)
    if isinstance(kind, type) and attrs.has(kind):
        attrs.resolve_types(kind)
        for field in attrs.fields(kind):
            yield f"{kind.__name__}.{field.name}: {field.type} = {field.default!r}"
            yield from shape(field.type, seen)
    elif isinstance(kind, type) and issubclass(kind, Enum):
        yield f"{kind.__name__}: {[each.value for each in kind]}"
    for argument in get_args(kind):
        yield from shape(argument, seen)


def form() -> bytes:
    """A fingerprint of the classes, and of what makes a position out of events."""
    return sha256("\n".join([*shape(Position), inspect.getsource(evolve)]).encode()).digest()


FORM = form()
