"""Our own framing beside h2, the reference: the same calls and the same bytes in, the same bytes and events out."""

from __future__ import annotations

from itertools import product
from struct import pack

import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.transport.events import DataArrived, Event, StreamRefused
from protocols.transport.guard import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GO_AWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RESET,
    SETTINGS,
    WINDOW_UPDATE,
)
from protocols.transport.handshake import public_key
from protocols.transport.http2 import SessionLimits
from protocols.transport.streams import Streams
from tests.sessions import DIALLER, LISTENER, SEEDS

A, B = public_key(DIALLER), public_key(LISTENER)
PATHS = ("/cfd/test/1", "/cfd/other/1")
ENGINES = (True, False)
"""Whether h2, the reference."""


def streams(limits: SessionLimits, *, initiator: bool) -> Streams:
    own, peer = (A, B) if initiator else (B, A)
    return Streams(limits, initiator=initiator, own=own, peer=peer)


def do(side: Streams, what: str, number: int) -> object:
    """One of the calls that a connection makes; the same number means the same call on every engine."""
    known = sorted(side._streams)
    stream = known[number % len(known)] if known else 0
    match what:
        case "open":
            return side.open_stream(PATHS[number % 2]) if side.may_open else None
        case "send":
            side.send_data(stream, bytes(min(side.room(stream), number)))
        case "end":
            side.end_stream(stream)
        case "close":
            side.close_stream(stream)
        case "reset":
            side.reset_stream(stream, number % 14)
        case "refuse":
            return side.refuse(stream, 429, bytes(number % 50), number / 7)
        case "consume":
            side.consumed(stream, number)
        case "ping":
            side.ping(pack(">Q", number))
        case "drain":
            if number % 20 == 0:
                side.drain()
    return None


CALLS = ["open", "open", "send", "send", "send", "end", "close", "reset", "refuse", "consume", "ping", "drain"]


class Wire:
    """Two sides of chosen engines; what is said and heard in the order in which it happens."""

    def __init__(self, a: bool, b: bool) -> None:
        self.sides = {
            name: streams(
                SessionLimits(streams=5, stream_window=3_000, connection_window=70_000, reference=reference),
                initiator=name == "a",
            )
            for name, reference in (("a", a), ("b", b))
        }
        self.under_way = {"a": bytearray(), "b": bytearray()}
        self.now = 0.0
        self.carry("b", None)
        self.carry("a", None)

    def carry(self, to: str, count: int | None) -> tuple[bytes, list[Event]]:
        self.now += 1
        sender = self.sides["b" if to == "a" else "a"]
        waiting, said = sender.unsent, sender.take()
        assert waiting == len(said)
        self.under_way[to] += said
        data = bytes(self.under_way[to][:count])
        del self.under_way[to][: len(data)]
        return said, joined(self.sides[to].receive(data, self.now))


def joined(events: list[Event]) -> list[Event]:
    """With data of one stream that came together in one piece, as ours hands it on."""
    found: list[Event] = []
    for event in events:
        match found[-1:], event:
            case [DataArrived(before, start)], DataArrived(stream, rest) if before == stream:
                found[-1] = DataArrived(stream, start + rest)
            case _:
                found.append(event)
    return found


@settings(max_examples=SEEDS)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([*CALLS, "carry", "carry", "carry"]), st.integers(0, 9_000)),
        max_size=100,
    )
)
def test_both_engines_say_the_same_bytes_and_understand_each_other(doings: list[tuple[str, str, int]]) -> None:
    wires = [Wire(a, b) for a, b in product(ENGINES, repeat=2)]
    for side, what, number in [*doings, *[("b", "carry", 10**6), ("a", "carry", 10**6)] * 3]:
        happened = [
            wire.carry(side, number) if what == "carry" else do(wire.sides[side], what, number) for wire in wires
        ]
        assert all(each == happened[0] for each in happened)


# -- what a hostile peer may say

_HEADER_LISTS = (
    [(b":method", b"POST"), (b":scheme", b"cfd"), (b":authority", B.hex().encode()), (b":path", b"/cfd/test/1")],
    [(b":method", b"POST"), (b":scheme", b"cfd"), (b":authority", B.hex().encode())],
    [(b":status", b"200")],
    [(b":status", b"404"), (b"retry-after", b"7")],
    [(b":status", b"404"), (b"retry-after", b"8")],
    [(b"Upper", b"case")],
    [(b"cookie", b"a"), (b"cookie", b"b")],
)


def frame(kind: int, flags: int, stream_id: int, body: bytes) -> bytes:
    return pack(">HBBBL", len(body) >> 8, len(body) & 0xFF, kind, flags, stream_id) + body


NUMBERS = st.sampled_from([0, 1, 2, 3, 100, 70_000, 2**31 - 1, 2**31, 2**32 - 1])
SETTING = st.tuples(st.sampled_from([1, 2, 3, 4, 5, 6, 99]), st.sampled_from([0, 1, 4_096, 16_384, 65_536, 2**31]))


@st.composite
def frames(draw: st.DrawFn, encoder: Encoder) -> bytes:
    kind = draw(
        st.sampled_from([DATA, DATA, HEADERS, HEADERS, HEADERS, RESET, WINDOW_UPDATE, PING, SETTINGS, PRIORITY])
    )
    stream_id = draw(st.sampled_from([1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 5, 5, 7, 0, 4, 8, 9]))
    flags = draw(st.sampled_from([0, 0, END_STREAM]))
    if kind == HEADERS:
        kept = {1: 0, 3: 0, 5: 0, 7: 0, 9: 0}.get(stream_id, 2)
        headers = _HEADER_LISTS[draw(st.sampled_from([kept, kept, kept, kept, *range(len(_HEADER_LISTS))]))]
        return frame(kind, flags | END_HEADERS, stream_id, encoder.encode(headers))
    if kind == DATA:
        return frame(kind, flags, stream_id, bytes(draw(st.sampled_from([0, 1, 1_000, 3_001]))))
    if kind == PING:
        return frame(kind, flags, 0 if stream_id < 8 else stream_id, bytes(8))
    if kind == PRIORITY:
        return frame(kind, 0, stream_id, pack(">LB", draw(NUMBERS), 7))
    if kind == SETTINGS:
        body = b"".join(pack(">HL", *each) for each in draw(st.lists(SETTING, max_size=2)))
        return frame(kind, flags, 0 if stream_id < 9 else stream_id, b"" if flags and stream_id % 2 else body)
    return frame(kind, 0, stream_id, pack(">L", draw(NUMBERS)))


@settings(max_examples=4 * SEEDS)
@given(st.data())
def test_both_engines_judge_hostile_frames_alike(data: st.DataObject) -> None:
    both = [streams(SessionLimits(stream_window=3_000, reference=each), initiator=False) for each in ENGINES]
    opening = PREFACE + frame(SETTINGS, 0, 0, b"")
    encoder = Encoder()
    for stream_id in (1, 3):
        opening += frame(HEADERS, END_HEADERS, stream_id, encoder.encode(_HEADER_LISTS[0]))
    heard = [each.receive(opening, 0) for each in both]
    assert heard[0] == heard[1]
    assert len(heard[0]) == 4
    assert {each.open_stream(PATHS[0]) for each in both} == {2}
    for now in range(1, data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()):
            said = b"".join(data.draw(st.lists(frames(encoder), min_size=1, max_size=3)))
            judged: list[object] = [judge(each, said, now) for each in both]
        else:
            what, number = data.draw(st.sampled_from(CALLS)), data.draw(st.integers(0, 500))
            judged = [do(each, what, number) for each in both]
        assert judged[0] == judged[1]
        if judged[0] == BROKEN:
            return  # h2 says GOAWAY by itself then
        assert both[0].take() == both[1].take()
    farewell = frame(GO_AWAY, 0, 0, pack(">LL", 0, 1) + b"bye")
    heard = [each.receive(farewell, 99) for each in both]
    assert heard[0] == heard[1]
    assert both[0].take() == both[1].take()


BROKEN = "the connection is over"


def judge(side: Streams, said: bytes, now: float) -> list[Event] | str:
    try:
        return joined(side.receive(said, now))
    except RemoteProtocolError:
        return BROKEN


@pytest.mark.parametrize("headers", [[(b"content-length", b"7")], [(b"content-length", b"seven")]])
def test_where_ours_is_stricter(headers: list[tuple[bytes, bytes]]) -> None:
    side = streams(SessionLimits(), initiator=False)
    side.receive(PREFACE + frame(SETTINGS, 0, 0, b""), 0)
    block = Encoder().encode([*_HEADER_LISTS[0], *headers])
    with pytest.raises(RemoteProtocolError, match="content-length"):
        side.receive(frame(HEADERS, END_HEADERS, 1, block), 0)


def test_headers_that_repeat_mean_what_the_table_says_now() -> None:
    """A block of references is looked up; once the table has changed, the same bytes mean something else."""
    side = streams(SessionLimits(), initiator=False)
    side.receive(PREFACE + frame(SETTINGS, 0, 0, b""), 0)
    encoder, blocks = Encoder(), []
    for retry_after in (1, 1, 2, 2, 1, 2):
        stream_id = side.open_stream(PATHS[0])
        blocks.append(encoder.encode([(b":status", b"404"), (b"retry-after", b"%d" % retry_after)]))
        events = side.receive(frame(HEADERS, END_HEADERS | END_STREAM, stream_id, blocks[-1]), stream_id)
        assert events == [StreamRefused(stream_id, 404, b"", retry_after)]
    assert blocks[1] == blocks[3] == blocks[5] != blocks[4]
