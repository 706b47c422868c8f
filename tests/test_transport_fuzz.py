"""Bytes changed on their way, at any place of the handshake and of the records behind it.

Nothing but RemoteProtocolError comes out, and nothing that was not sent, or not in that order. ``TRANSPORT_SEEDS=1000``
tries so many cases instead of fifty.
"""

from __future__ import annotations

import random

from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.transport.events import DataArrived, Established, StreamOpened
from protocols.transport.session import Session
from tests.sessions import SEEDS, Pair, established, fresh

PATH = "/cfd/ping/1"

CHANCE = st.randoms(use_true_random=False)
HOW = st.sampled_from(["flip", "change", "insert", "leave out", "repeat", "cut off", "swap"])


def bent(data: bytes, how: str, chance: random.Random) -> bytes:
    """The data with one thing done to it."""
    changed = bytearray(data)
    at = chance.randrange(len(data))
    size = chance.randint(1, 1 + len(data) // 4)
    match how:
        case "flip":
            changed[at] ^= 1 << chance.randrange(8)
        case "change":
            changed[at : at + size] = chance.randbytes(len(changed[at : at + size]))
        case "insert":
            changed[at:at] = chance.randbytes(size)
        case "leave out":
            del changed[at : at + size]
        case "repeat":
            changed[at:at] = changed[at : at + size]
        case "cut off":
            del changed[at:]
        case _:
            half = len(changed) // 2
            changed = changed[half:] + changed[:half]
    return bytes(changed)


@define
class Reader:
    """Takes what arrives, in pieces of any size, until the session is over."""

    session: Session
    chance: random.Random
    opened: list[str] = field(factory=list)
    data: bytearray = field(factory=bytearray)
    established: bool = False

    def take(self, data: bytes) -> None:
        position = 0
        while position < len(data) and not self.session.over:
            size = self.chance.choice((1, 2, 3, 7, 50, 1000, 100_000))
            try:
                events = self.session.receive(data[position : position + size], 0)
            except RemoteProtocolError:
                return
            position += size
            for event in events:
                match event:
                    case StreamOpened(_, path):
                        self.opened.append(path)
                    case DataArrived(_, piece):
                        self.data += piece
                    case Established():
                        self.established = True


@settings(max_examples=SEEDS)
@given(CHANCE, HOW, st.integers(0, 2))
def test_a_handshake_that_was_touched_never_ends_well(chance: random.Random, how: str, number: int) -> None:
    """Of its three messages one arrives changed."""
    pair = fresh()
    readers = {"a": Reader(pair.a, chance), "b": Reader(pair.b, chance)}
    touched = False
    for turn, (sender, to) in enumerate(((pair.a, "b"), (pair.b, "a"), (pair.a, "b"))):
        data = bytes(sender.data_to_send())
        if turn == number and data:
            changed = bent(data, how, chance)
            touched = changed != data
            # What was only added behind the message belongs to the next one.
            touched = touched and not changed.startswith(data)
            data = changed
        if data:
            readers[to].take(data)
    receiver = readers["a" if number == 1 else "b"]
    if touched:
        assert not receiver.established
    assert not receiver.opened
    assert not receiver.data


def sent_in_records(pair: Pair, chance: random.Random) -> tuple[bytes, bytes]:
    """What one side says on a stream, and the records it became."""
    streams = pair.a.streams
    stream = streams.open_stream(PATH)
    said, wire = bytearray(), bytearray()
    for _ in range(chance.randint(1, 12)):
        data = chance.randbytes(chance.choice((1, 20, 300, 3000)))
        streams.send_data(stream, data)
        said += data
        if chance.random() < 0.5:
            wire += pair.a.data_to_send()
    wire += pair.a.data_to_send()
    return bytes(said), bytes(wire)


@settings(max_examples=SEEDS)
@given(CHANCE, HOW)
def test_of_records_that_were_touched_only_those_before_arrive(chance: random.Random, how: str) -> None:
    pair = established()
    said, wire = sent_in_records(pair, chance)
    changed = bent(wire, how, chance)
    reader = Reader(pair.b, chance)
    reader.take(changed)
    assert reader.opened in ([], [PATH])
    assert said.startswith(bytes(reader.data))
    if changed == wire:
        assert bytes(reader.data) == said
    elif not changed.startswith(wire):
        assert len(reader.data) < len(said)


@settings(max_examples=SEEDS)
@given(st.binary(max_size=400), st.booleans(), CHANCE)
def test_noise_from_the_first_byte_on(noise: bytes, dialled: bool, chance: random.Random) -> None:
    pair = fresh()
    reader = Reader(pair.a if dialled else pair.b, chance)
    reader.take(noise)
    assert not reader.established
