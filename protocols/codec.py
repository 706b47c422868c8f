"""Typed messages to and from MessagePack, strict and bounded.

A message on the wire is a MessagePack map ``{"type": name, field: value, …}``; the name is the class's own in snake
case. Messages follow one another on the stream without any frame, since MessagePack delimits itself. Unknown types
and fields, missing fields, wrong types, repeated keys and whatever a message class itself refuses become a
`RemoteProtocolError` that names the field. Golden files in ``tests/golden`` pin the bytes of each message.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Any, get_args, get_origin

import attrs
import cattrs
import msgpack
from attrs import field, frozen
from cattrs.gen import make_dict_structure_fn

from protocols.errors import LocalError, RemoteProtocolError


class Message:
    """Base of all wire messages: attrs classes with fields of int, str, bytes, bool, enums, tuples and the like."""

    __slots__ = ()


def exactly(length: int) -> Callable[[Any, Any, bytes], None]:
    """An attrs validator for a field of so many bytes."""

    def check(_: Any, attribute: Any, value: bytes) -> None:
        if len(value) != length:
            raise ValueError(f"{attribute.name} must be {length} bytes, got {len(value)}")

    return check


def wire_name(message: type[Message]) -> str:
    """``PlaceOrder`` travels as ``place_order``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", message.__name__).lower()


@frozen
class Rejected(Message):
    """Ends a dialogue with a reason; part of every protocol, and allowed in place of any message."""

    code: str
    sentence: str

    def __attrs_post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.code):
            raise ValueError(f"code must be a snake_case word of at most 64 letters, got {self.code!r:.80}")
        # A peer's sentence is shown to people and written to logs: one line, no control characters.
        if len(self.sentence) > 500 or not self.sentence.isprintable():
            raise ValueError("sentence must be printable and at most 500 characters")


MAX_REJECTED = 2100
"""Bytes of the longest `Rejected`."""


def _exactly(expected: type) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if type(value) is not expected:
            raise ValueError(f"must be {expected.__name__}, got {type(value).__name__}")
        return value

    return structure


def strict_converter() -> cattrs.Converter:
    """A cattrs converter that coerces nothing and refuses unknown fields."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for plain in (int, str, bytes, bool):
        converter.register_structure_hook(plain, _exactly(plain))
        converter.register_unstructure_hook(plain, lambda value: value)

    def tuples(kind: Any) -> Callable[[Any, Any], Any]:
        (item, *_) = get_args(kind)

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not list:  # MessagePack's extension types are tuples
                raise ValueError(f"must be a list, got {type(value).__name__}")
            items = []
            for index, element in enumerate(value):
                try:
                    items.append(converter.structure(element, item))
                except Exception as error:  # any refusal gains the index, whatever its class
                    raise ValueError(f"[{index}]: {explain(error)}") from error
            return tuple(items)

        return structure

    def is_homogeneous_tuple(kind: Any) -> bool:
        return get_origin(kind) is tuple and len(get_args(kind)) == 2 and get_args(kind)[1] is Ellipsis

    def maps(kind: Any) -> Callable[[Any, Any], Any]:
        fields = make_dict_structure_fn(kind, converter)

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise ValueError(f"must be a map, got {type(value).__name__}")
            return fields(value, kind)

        return structure

    def enumeration(value: Any, kind: Any) -> Any:
        try:
            return kind(value)
        except ValueError:
            allowed = ", ".join(str(member.value) for member in kind)
            raise ValueError(f"must be one of {allowed}, got {value!r:.40}") from None

    converter.register_structure_hook_factory(attrs.has, maps)
    converter.register_structure_hook_factory(is_homogeneous_tuple, tuples)
    converter.register_structure_hook_func(lambda kind: isinstance(kind, type) and issubclass(kind, Enum), enumeration)
    return converter


def explain(error: BaseException) -> str:
    """One line that names the field: the first leaf of what cattrs or a class's own check raised."""
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f"unknown field {', '.join(sorted(error.extra_fields))}"
    if isinstance(error, cattrs.BaseValidationError):
        leaf = error.exceptions[0]
        for note in getattr(leaf, "__notes__", ()):
            if name := getattr(note, "name", None):
                return f"{name}: {explain(leaf)}"
        return explain(leaf)
    if isinstance(error, KeyError):
        return "is missing"
    return str(error)[:300]


def _pairs_without_repetition(pairs: Any) -> dict[Any, Any]:
    listed = list(pairs)
    if not all(type(key) is str for key, _ in listed):
        raise ValueError("a key is no string")
    result = dict(listed)
    if len(result) != len(listed):
        raise ValueError("a key is repeated")
    return result


_converter = strict_converter()


class Codec:
    """The messages of one protocol, and the size that none of them exceeds."""

    def __init__(self, *kinds: type[Message], limit: int) -> None:
        """`limit`: the most bytes that one message may take on the wire; there is always room for a rejection."""
        self.limit = max(limit, MAX_REJECTED)
        self.kinds = {wire_name(kind): kind for kind in (*kinds, Rejected)}

    def encode(self, message: Message) -> bytes:
        """The message's bytes; LocalError if it is not of this protocol or too large."""
        name = wire_name(type(message))
        if self.kinds.get(name) is not type(message):
            raise LocalError("foreign_message", f"{type(message).__name__} is no message of this protocol")
        packed: bytes = msgpack.packb({"type": name, **_converter.unstructure(message)}, use_bin_type=True)
        if len(packed) > self.limit:
            raise LocalError("message_too_large", f"{name} takes {len(packed)} bytes, at most {self.limit} are allowed")
        return packed

    def decoder(self) -> Decoder:
        return Decoder(self)

    def structure(self, value: object) -> Message:
        """A decoded MessagePack value as the message that it is; RemoteProtocolError otherwise."""
        if not isinstance(value, dict) or not isinstance(value.get("type"), str):
            raise malformed("a message must be a map with a field 'type'")
        name = value.pop("type")
        kind = self.kinds.get(name)
        if kind is None:
            raise malformed(f"unknown message type {name!r:.80}; spoken here: {', '.join(self.kinds)}")
        try:
            return _converter.structure(value, kind)
        except Exception as error:  # cattrs groups what any field's check may raise
            raise malformed(f"{name}: {explain(error)}") from error


def printable(text: str, limit: int = 500) -> str:
    """Text that may hold a peer's bytes, made fit for a log line and for `Rejected.sentence`."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:limit])
    return shown if len(text) <= limit else shown[:-1] + "…"


def malformed(sentence: str) -> RemoteProtocolError:
    return RemoteProtocolError("malformed", printable(sentence))


class Decoder:
    """Bytes in, messages out. After an error it is of no more use."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._buffered = 0
        """Bytes given to the unpacker."""
        self._begun = 0
        """Those of them that belonged to whole messages; `tell` also counts parts of a message."""
        self._unpacker = msgpack.Unpacker(
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_pairs_without_repetition,
            max_buffer_size=codec.limit,
            max_array_len=4096,
            max_map_len=64,
            max_ext_len=0,
        )
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes from the stream."""
        self._pending += data

    def next(self) -> Message | None:
        """The next whole message, or None if more bytes are needed; RemoteProtocolError if there can be none."""
        while True:
            try:
                value = self._unpacker.unpack()
            except msgpack.OutOfData:
                if not self._pending:
                    return None
                room = self._codec.limit - (self._buffered - self._begun)
                if room <= 0:
                    raise malformed(f"a message exceeds {self._codec.limit} bytes") from None
                piece = bytes(self._pending[:room])
                del self._pending[:room]
                self._buffered += len(piece)
                self._unpacker.feed(piece)
            except (ValueError, msgpack.UnpackException, RecursionError) as error:
                reason = str(error) or type(error).__name__
                raise malformed(f"not MessagePack as this protocol uses it: {reason:.200}") from error
            else:
                self._begun = self._unpacker.tell()
                return self._codec.structure(value)

    @property
    def empty(self) -> bool:
        """Whether no part of a message has arrived."""
        return not self._pending and self._buffered == self._begun


@frozen
class Protocol:
    """What both ends must agree on to speak: where it is found and what its messages are."""

    path: str
    codec: Codec = field(eq=False)
    send_within: float = 120.0
    """Seconds that the peer may take to accept one message."""
