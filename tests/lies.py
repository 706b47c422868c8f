"""Messages changed on their way, for tables of lies: what the other side says is checked, field by field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from protocols.codec import Codec, Message

Plain = dict[str, Any]
Change = Callable[[Plain], None]


class Lying(Codec):
    """Changes the fields of one message on its way."""

    def __init__(self, honest: Codec, kind: str, change: Change) -> None:
        self.limit, self.kinds = honest.limit, honest.kinds
        self.kind, self.change = kind, change
        self.lied = False

    def encode(self, message: Message) -> bytes:
        data = super().encode(message)
        plain = msgpack.unpackb(data)
        if plain["type"] != self.kind:
            return data
        self.change(plain)
        bent: bytes = msgpack.packb(plain)
        assert bent != data, "this is no lie"
        self.lied = True
        return bent


def put(**fields: Any) -> Change:
    def change(plain: Plain) -> None:
        assert fields.keys() <= plain.keys()
        plain.update(fields)

    return change


def drop(name: str) -> Change:
    return lambda plain: plain.__delitem__(name)


def flip(name: str, at: int = 10) -> Change:
    """One bit of a byte string, or of the first one in a list of them."""

    def change(plain: Plain) -> None:
        plain[name] = flipped(plain[name], at)

    return change


def flipped(value: Any, at: int) -> Any:
    if isinstance(value, bytes):
        return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
    return [flipped(value[0], at), *value[1:]]


def same(name: str, other: str, function: Callable[[bytes], bytes] = bytes) -> Change:
    return lambda plain: plain.__setitem__(name, function(plain[other]))


def edit(name: str, function: Callable[[Any], Any]) -> Change:
    return lambda plain: plain.__setitem__(name, function(plain[name]))
