"""Sessions: streams from both sides, refusals, ends and resets, windows, and bytes from hell."""

from __future__ import annotations

import random
from contextlib import suppress

import h2
import pytest
from attrs import evolve
from h2.errors import ErrorCodes
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import LocalError, RemoteProtocolError
from protocols.transport.events import (
    DataArrived,
    DrainHeard,
    Event,
    Farewell,
    LimitChanged,
    PongArrived,
    StreamAborted,
    StreamEnded,
    StreamOpened,
    StreamRefused,
    WindowOpened,
)
from protocols.transport.guard import HEADERS, PING, RESET, SETTINGS
from protocols.transport.handshake import public_key
from protocols.transport.http2 import QUICK, SessionLimits
from protocols.transport.streams import Streams
from tests.sessions import DIALLER, LISTENER, SEEDS, Pair, established
from tests.test_transport_guard import frame, head

PATH = "/cfd/ping/1"
WINDOW = 256 * 1024


def opened(events: list[Event]) -> list[int]:
    return [event.stream_id for event in events if isinstance(event, StreamOpened)]


def received(events: list[Event], stream: int) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, DataArrived) and event.stream_id == stream)


@pytest.mark.parametrize("opener", ["a", "b"])
def test_either_side_opens_streams(opener: str) -> None:
    """h2 documents streams opened by one side only; that the other works too is why it is pinned."""
    assert h2.__version__.split(".")[:2] in (["4", "2"], ["4", "3"], ["4", "4"])
    pair = established()
    other = "b" if opener == "a" else "a"
    one, two = pair.side(opener).streams, pair.side(other).streams
    for number in range(3):
        stream = one.open_stream(PATH)
        assert stream == 2 * number + (1 if opener == "a" else 2)
        one.send_data(stream, b"question")
        one.end_stream(stream)
        pair.settle()
        assert pair.take(other) == [
            StreamOpened(stream, PATH),
            DataArrived(stream, b"question"),
            StreamEnded(stream),
        ]
        two.send_data(stream, b"answer")
        two.end_stream(stream)
        pair.settle()
        assert pair.take(opener) == [DataArrived(stream, b"answer"), StreamEnded(stream)]
        assert one.open_streams == two.open_streams == 0


def test_opening_and_first_data_are_one_flight_and_so_is_the_answer() -> None:
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    pair.a.streams.send_data(stream, b"question")
    assert pair.carry("b") == [StreamOpened(stream, PATH), DataArrived(stream, b"question")]
    pair.b.streams.send_data(stream, b"answer")
    assert pair.carry("a") == [DataArrived(stream, b"answer")]


def test_an_answer_without_data_is_an_empty_one() -> None:
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    pair.carry("b")
    pair.b.streams.close_stream(stream)
    assert pair.carry("a") == [StreamEnded(stream), StreamAborted(stream, 0)]


@pytest.mark.parametrize("ended", [False, True])
def test_refusals_carry_status_body_and_time(ended: bool) -> None:
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    if ended:
        pair.a.streams.end_stream(stream)
    pair.carry("b")
    assert pair.b.streams.refuse(stream, 429, b"too much to do", retry_after=2.5)
    pair.settle()
    assert pair.take("a") == [StreamRefused(stream, 429, b"too much to do", 2.5)]
    assert not pair.a.streams.alive(stream)
    assert not pair.b.streams.alive(stream)


def test_a_refusal_after_the_first_answer_is_not_possible() -> None:
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    pair.carry("b")
    pair.b.streams.send_data(stream, b"answer")
    assert not pair.b.streams.refuse(stream, 500)
    assert pair.b.streams.alive(stream)


def test_a_refusal_that_never_ends_the_stream_is_bounded() -> None:
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    pair.carry("b")
    h2_of_b = pair.b.streams._h2
    h2_of_b.send_headers(stream, [(b":status", b"404")])
    for _ in range(4):
        h2_of_b.send_data(stream, bytes(1024))
    assert pair.carry("a") == []
    h2_of_b.send_data(stream, b"x")
    with pytest.raises(RemoteProtocolError, match="more than 4096"):
        pair.carry("a")


def test_a_request_that_was_reset_in_the_same_batch_can_be_answered_harmlessly() -> None:
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    pair.a.streams.send_data(stream, b"question")
    pair.a.streams.reset_stream(stream, ErrorCodes.CANCEL)
    other = pair.a.streams.open_stream(PATH)
    assert pair.carry("b") == [
        StreamOpened(stream, PATH),
        DataArrived(stream, b"question"),
        StreamAborted(stream, ErrorCodes.CANCEL),
        StreamOpened(other, PATH),
    ]
    streams = pair.b.streams
    assert not streams.alive(stream)
    assert streams.room(stream) == 0
    streams.send_data(stream, b"answer")
    streams.end_stream(stream)
    streams.reset_stream(stream, ErrorCodes.CANCEL)
    streams.consumed(stream, 8)
    assert streams.refuse(stream, 404)
    streams.send_data(other, b"answer")
    assert pair.carry("a") == [DataArrived(other, b"answer")]


def test_what_was_under_way_when_we_reset_is_ignored_and_costs_the_peer_no_reset() -> None:
    """h2 answers each such frame with a RST_STREAM: 300 of them would exhaust the peer's patience with us."""
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    pair.carry("b")
    for _ in range(300):
        pair.b.streams.send_data(stream, b"offer" * 100)
    pair.b.streams.end_stream(stream)
    pair.a.streams.reset_stream(stream, ErrorCodes.CANCEL)
    assert pair.carry("a") == []
    pair.settle()
    assert pair.take("b") == [StreamOpened(stream, PATH), StreamAborted(stream, ErrorCodes.CANCEL)]
    # The header compression of both sides is still in step.
    again = pair.b.streams.open_stream(PATH)
    pair.b.streams.send_data(again, b"still there")
    pair.settle()
    assert received(pair.take("a"), again) == b"still there"


def test_headers_that_are_ignored_still_count_for_their_compression() -> None:
    pair = established()
    late, next_one = pair.a.streams.open_stream(PATH), pair.a.streams.open_stream(PATH)
    pair.carry("b")
    pair.b.streams.refuse(late, 429, retry_after=123.456)  # goes into the compression table
    pair.a.streams.reset_stream(late, ErrorCodes.CANCEL)
    assert pair.carry("a") == []
    pair.b.streams.refuse(next_one, 429, retry_after=123.456)  # is named by its place there
    assert pair.carry("a") == [StreamRefused(next_one, 429, b"", 123.456)]


def test_a_refused_stream_is_freed_though_the_peer_does_not_say_so() -> None:
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    pair.carry("b")
    pair.b.streams._h2.send_headers(stream, [(b":status", b"404")], end_stream=True)
    assert pair.carry("a") == [StreamRefused(stream, 404, b"", None)]
    assert pair.carry("b") == [StreamAborted(stream, 0)]
    assert not pair.a.streams._h2.lives(stream)
    assert not pair.b.streams._h2.lives(stream)


def test_a_late_answer_is_ignored_even_when_the_peer_has_no_streams_left() -> None:
    limits = SessionLimits(streams=1)
    pair = established(limits)
    stream = pair.a.streams.open_stream(PATH)
    pair.carry("b")
    pair.b.streams.send_data(stream, b"answer")
    theirs = pair.b.streams.open_stream(PATH)
    pair.b.streams.send_data(theirs, b"question")
    pair.a.streams.reset_stream(stream, ErrorCodes.CANCEL)
    pair.a.streams.open_stream(PATH)  # makes h2 forget the first
    pair.settle()
    assert opened(pair.take("a")) == [theirs]


def test_ignored_data_gives_the_connection_window_back() -> None:
    pair = established()
    for _ in range(2 * 8 * 1024 * 1024 // WINDOW):
        stream = pair.a.streams.open_stream(PATH)
        pair.settle()
        while room := pair.b.streams.room(stream):
            pair.b.streams.send_data(stream, bytes(room))
        pair.a.streams.reset_stream(stream, ErrorCodes.CANCEL)
        pair.settle()
        pair.now += 1
    assert pair.b.streams._h2.outbound_flow_control_window > 4 * 1024 * 1024


def fill(pair: Pair, stream: int) -> int:
    sent = 0
    while room := pair.a.streams.room(stream):
        pair.a.streams.send_data(stream, bytes(room))
        sent += room
    pair.settle()
    return sent


def test_a_slow_reader_holds_one_window_and_delays_nobody() -> None:
    pair = established()
    slow = pair.a.streams.open_stream(PATH)
    assert fill(pair, slow) == WINDOW
    assert pair.a.streams.room(slow) == 0
    quick = pair.a.streams.open_stream(PATH)
    total = 0
    while total < 20 * 1024 * 1024:
        sent = fill(pair, quick)
        assert sent
        total += sent
        pair.b.streams.consumed(quick, sent)
        pair.settle()
    assert pair.a.streams.room(slow) == 0
    pair.take("a")
    pair.b.streams.consumed(slow, WINDOW // 2 - 1)
    pair.settle()
    assert pair.take("a") == []
    pair.b.streams.consumed(slow, 1)
    pair.settle()
    assert pair.take("a") == [WindowOpened(slow)]
    assert fill(pair, slow) == WINDOW // 2


def test_windows_grow_for_readers_that_keep_up_within_what_all_may_have() -> None:
    pair = established(SessionLimits(stream_window=1000, quick_windows=5000))

    def dialogue(*, reads: bool) -> tuple[int, int]:
        """A stream, and what may at last be under way on it."""
        stream, room = pair.a.streams.open_stream(PATH), 0
        for _ in range(10):
            room = fill(pair, stream)
            pair.b.streams.consumed(stream, room if reads else room - 1)
            pair.settle()
            if not reads:  # a byte is always left
                assert room <= 1000
        return stream, room

    assert dialogue(reads=False)[1] <= 1000
    first, room = dialogue(reads=True)
    assert room == QUICK * 1000
    second, room = dialogue(reads=True)
    assert room == 1000 + 2000, "the rest of what all may have"
    assert dialogue(reads=True)[1] == 1000
    for end in (pair.a, pair.b):
        end.streams.end_stream(first)
        pair.settle()
    pair.b.streams.reset_stream(second, 8)
    pair.settle()
    assert dialogue(reads=True)[1] == QUICK * 1000


def test_the_last_of_the_allowed_streams_is_not_the_end_of_the_connection() -> None:
    pair = established(SessionLimits(streams=3))
    streams = pair.a.streams
    ids = [streams.open_stream(PATH) for _ in range(3)]
    with pytest.raises(LocalError, match="3 streams are open, allowed are 3"):
        streams.open_stream(PATH)
    # Theirs are counted apart from ours.
    pair.b.streams.open_stream(PATH)
    pair.settle()
    for closes in (streams.close_stream, lambda stream: streams.reset_stream(stream, ErrorCodes.CANCEL)):
        closes(ids.pop())
        assert streams.may_open
        ids.append(streams.open_stream(PATH))
    pair.settle()
    pair.b.streams.refuse(ids[0], 429)
    pair.settle()
    assert streams.may_open


def test_streams_beyond_the_limit_end_the_connection_of_whoever_opens_them() -> None:
    pair = established(SessionLimits(streams=3))
    for number in range(4):
        pair.a.streams._h2.remote_settings.pop(3, None)
        pair.a.streams._limits = evolve(pair.a.streams._limits, streams=100)
        assert pair.a.streams.open_stream(PATH) == 2 * number + 1
    with pytest.raises(RemoteProtocolError, match="Max inbound streams is 3"):
        pair.carry("b")


def test_drain_lets_streams_end_and_takes_no_more() -> None:
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    pair.settle()
    pair.b.streams.drain()
    crossing = pair.a.streams.open_stream(PATH)
    pair.settle()
    assert DrainHeard() in pair.take("b")
    assert LimitChanged() in pair.take("a")
    assert pair.a.streams.streams_allowed == 0
    assert not pair.a.streams.may_open
    assert not pair.b.streams.may_open
    for open_one in (stream, crossing):
        pair.b.streams.send_data(open_one, b"answer")
        pair.b.streams.close_stream(open_one)
    pair.settle()
    assert received(pair.heard["a"], stream) == received(pair.heard["a"], crossing) == b"answer"
    assert pair.b.streams.open_streams == 0
    pair.b.go_away(0, b"bye")
    pair.settle()
    assert pair.take("a")[-1] == Farewell(0, b"bye")
    assert pair.a.over
    with pytest.raises(LocalError):
        pair.a.receive(b"more", 0)


def test_nothing_said_after_a_farewell_does_harm() -> None:
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    pair.settle()
    pair.b.go_away(0)
    pair.settle()
    for side in (pair.a, pair.b):
        streams = side.streams
        assert not streams.alive(stream)
        assert not streams.may_open
        streams.send_data(stream, b"x")
        streams.end_stream(stream)
        streams.reset_stream(stream, ErrorCodes.CANCEL)
        streams.ping(bytes(8))
        streams.drain()
        side.go_away(0)
        assert side.data_to_send() == b""


def test_pings_come_back() -> None:
    pair = established()
    pair.a.streams.ping(b"12345678")
    pair.settle()
    assert pair.take("a") == [PongArrived(b"12345678")]


def test_an_orderly_close_before_the_peers_costs_the_peer_nothing() -> None:
    """1 000 dialogues in which the answering side closes first: a RST_STREAM each, and no flood."""
    pair = established()
    for _ in range(1000):
        stream = pair.a.streams.open_stream(PATH)
        pair.a.streams.send_data(stream, b"question")
        pair.settle()
        pair.b.streams.send_data(stream, b"answer")
        pair.b.streams.close_stream(stream)
        pair.settle()
        assert received(pair.take("a"), stream) == b"answer"


def test_many_orderly_closes_at_once_are_no_flood() -> None:
    """A thousand streams that were answered, closed in one go: the peer finds them all in one record."""
    pair = established(SessionLimits(streams=1_000))
    streams = [pair.a.streams.open_stream(PATH) for _ in range(1_000)]
    for stream in streams:
        pair.a.streams.send_data(stream, b"question")
    pair.settle()
    for stream in streams:
        pair.b.streams.send_data(stream, b"answer")
        pair.b.streams.close_stream(stream)
    pair.settle()
    events = pair.take("a")
    assert {stream: received(events, stream) for stream in streams} == dict.fromkeys(streams, b"answer")
    assert not pair.a.over


def test_rapid_resets_end_the_connection() -> None:
    pair = established()
    for _ in range(201):
        pair.a.streams.reset_stream(pair.a.streams.open_stream(PATH), ErrorCodes.CANCEL)
    with pytest.raises(RemoteProtocolError, match="RST_STREAM"):
        pair.carry("b")
    assert pair.b.over
    # The offender is told, in a word.
    assert pair.carry("a")[-1] == Farewell(ErrorCodes.PROTOCOL_ERROR, b"frame_flood")


def test_unread_answers_are_capped() -> None:
    pair = established(SessionLimits(unsent_answers=100))
    for number in range(6):
        pair.now = number
        pair.a.streams.ping(bytes(8))
        if number < 5:
            pair.b.receive(pair.a.data_to_send(), pair.now)
    with pytest.raises(RemoteProtocolError, match="does not read"):
        pair.b.receive(pair.a.data_to_send(), pair.now)


def test_unknown_settings_are_not_remembered() -> None:
    pair = established()
    streams = pair.b.streams
    before = len(streams._h2.remote_settings)
    payload = b"".join((0x4000 + n).to_bytes(2, "big") + bytes(4) for n in range(8))
    streams.receive(head(SETTINGS, len(payload), stream=0) + payload, 0)
    assert len(streams._h2.remote_settings) == before


def test_a_changed_record_ends_the_connection() -> None:
    pair = established()
    pair.a.streams.ping(bytes(8))
    record = bytearray(pair.a.data_to_send())
    record[5] ^= 1
    with pytest.raises(RemoteProtocolError, match="authentication"):
        pair.b.receive(record, 0)
    with pytest.raises(LocalError, match="over"):
        pair.b.receive(b"", 0)


def test_records_cannot_be_replayed_or_left_out() -> None:
    pair = established()
    pair.a.streams.ping(bytes(8))
    first = pair.a.data_to_send()
    pair.b.receive(first, 0)
    with pytest.raises(RemoteProtocolError, match="authentication"):
        pair.b.receive(first, 0)


def test_an_empty_record_is_refused_at_its_length() -> None:
    pair = established()
    with pytest.raises(RemoteProtocolError, match="record length 16"):
        pair.b.receive(b"\0\x10", 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"somebody else")],
)
def test_requests_must_be_addressed_to_us(name: bytes, value: bytes) -> None:
    pair = established()
    headers = {
        b":method": b"POST",
        b":scheme": b"cfd",
        b":authority": public_key(LISTENER).hex().encode(),
        b":path": PATH.encode(),
    } | {name: value}
    pair.a.streams._h2.send_headers(1, list(headers.items()))
    with pytest.raises(RemoteProtocolError, match=f"{name.decode()} {value!r}, must be"):
        pair.carry("b")


@pytest.mark.parametrize("second", [[(b":status", b"103")], [(b"trailer", b"x")]])
def test_header_blocks_that_the_protocol_does_not_have(second: list[tuple[bytes, bytes]]) -> None:
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    pair.carry("b")
    frames = pair.b.streams._h2
    if second[0][0] == b"trailer":
        pair.b.streams.send_data(stream, b"x")
        frames.send_headers(stream, second, end_stream=True)
    else:
        frames.send_headers(stream, second)
    with pytest.raises(RemoteProtocolError, match="no part of the protocol"):
        pair.carry("a")


def test_a_header_bomb_is_refused() -> None:
    pair = established()
    block = Encoder().encode([(b"x", b"y" * 3000)]) + b"\xbe" * 500  # one entry, named 500 times
    with pytest.raises(RemoteProtocolError, match="Oversized"):
        pair.b.streams.receive(head(HEADERS, len(block), 4, stream=1) + block, 0)


# -- arbitrary doings of both sides, arbitrary cuts on the way

DOINGS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["open", "send", "send", "end", "close", "reset", "consume", "refuse", "carry", "carry"]),
        st.integers(0, 10_000),
    ),
    max_size=120,
)


class World:
    """Two sides that do anything at any time, and what each stream should have delivered by then."""

    def __init__(self) -> None:
        self.pair = established(SessionLimits(streams=5, stream_window=3000, connection_window=70_000))
        self.known: dict[str, list[int]] = {"a": [], "b": []}
        self.sent: dict[tuple[str, int], bytes] = {}
        self.got: dict[tuple[str, int], bytes] = {}
        self.ended: set[tuple[str, int]] = set()
        self.finished: set[tuple[str, int]] = set()
        self.cut_off: set[int] = set()
        self.unread: dict[tuple[str, int], int] = {}

    def do(self, side: str, what: str, number: int) -> None:
        streams = self.pair.side(side).streams
        self.pair.now += 0.2
        if what == "open":
            if streams.may_open:
                self.known[side].append(streams.open_stream(f"/cfd/test/{number % 9 + 1}"))
            return
        if what == "carry":
            self.carry(side, number)
            return
        if not self.known[side]:
            return
        stream = self.known[side][number % len(self.known[side])]
        key = (side, stream)
        if what == "send" and key not in self.ended:
            data = bytes([number % 251]) * min(streams.room(stream), number)
            if data or streams.room(stream):
                streams.send_data(stream, data)
                self.sent[key] = self.sent.get(key, b"") + data
        elif what == "end":
            if streams.alive(stream):
                self.ended.add(key)
            streams.end_stream(stream)
        elif what == "close":
            self.give_up(stream)
            streams.close_stream(stream)
        elif what == "reset":
            self.give_up(stream)
            streams.reset_stream(stream, number % 14)
        elif what == "refuse":
            self.give_up(stream)
            streams.refuse(stream, 429, b"no" * (number % 50))
        elif what == "consume":
            streams.consumed(stream, self.unread.pop(key, 0))

    def give_up(self, stream: int) -> None:
        self.cut_off.add(stream)

    def carry(self, to: str, count: int | None) -> None:
        for event in self.pair.carry(to, count):
            match event:
                case StreamOpened(stream):
                    self.known[to].append(stream)
                case DataArrived(stream, data):
                    key = (to, stream)
                    assert key not in self.finished
                    self.got[key] = self.got.get(key, b"") + data
                    self.unread[key] = self.unread.get(key, 0) + len(data)
                case StreamEnded(stream):
                    assert (to, stream) not in self.finished
                    self.finished.add((to, stream))

    def check(self) -> None:
        for name, other in (("a", "b"), ("b", "a")):
            for stream in self.known[name]:
                sent, got = self.sent.get((name, stream), b""), self.got.get((other, stream), b"")
                assert sent.startswith(got)
                if stream not in self.cut_off:
                    assert got == sent
                    assert ((other, stream) in self.finished) == ((name, stream) in self.ended)


@settings(max_examples=SEEDS)
@given(DOINGS)
def test_whatever_both_sides_do_nobody_breaks_the_protocol(doings: list[tuple[str, str, int]]) -> None:
    world = World()
    for side, what, number in doings:
        world.do(side, what, number)
    for _ in range(5):
        world.carry("a", None)
        world.carry("b", None)
    world.check()
    for side in ("a", "b"):
        for stream in world.known[side]:
            world.pair.side(side).streams.reset_stream(stream, 8)
        for _ in range(3):
            world.carry("a", None)
            world.carry("b", None)
    assert world.pair.a.streams.open_streams == world.pair.b.streams.open_streams == 0
    # And there is life in it yet.
    stream = world.pair.a.streams.open_stream(PATH)
    world.pair.a.streams.send_data(stream, b"last")
    assert received(world.pair.carry("b"), stream) == b"last"


def frames_of(side: Streams) -> bytes:
    stream = side.open_stream(PATH)
    side.send_data(stream, b"question")
    side.ping(bytes(8))
    side.end_stream(stream)
    other = side.open_stream(PATH)
    side.reset_stream(other, 8)
    return side.take()


@settings(max_examples=SEEDS)
@given(st.randoms(use_true_random=False), st.sampled_from(["change", "splice", "cut", "random frames"]))
def test_bytes_from_hell_raise_one_kind_of_error(chance: random.Random, how: str) -> None:
    pair = established()
    data = bytearray(frames_of(pair.a.streams))
    match how:
        case "change":
            for _ in range(chance.randint(1, 6)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        case "splice":
            at = chance.randrange(len(data))
            data[at:at] = chance.randbytes(chance.randint(1, 40))
        case "cut":
            at = chance.randrange(len(data))
            del data[at : at + chance.randint(1, 40)]
        case _:
            for _ in range(10):
                length = chance.choice([0, 1, 4, 5, 6, 8, 20])
                kind = chance.choice([0, 1, 2, 3, 4, 6, 7, 8, 10, 12])
                data += head(kind, length, chance.randrange(256), stream=chance.randrange(6)) + chance.randbytes(length)
    with suppress(RemoteProtocolError):  # and nothing else
        for event in pair.b.streams.receive(bytes(data), 0):
            if isinstance(event, StreamOpened):
                pair.b.streams.send_data(event.stream_id, b"answer"[: pair.b.streams.room(event.stream_id)])
    pair.b.streams.take()


def test_the_guard_runs_before_h2_sees_anything() -> None:
    pair = established()
    with pytest.raises(RemoteProtocolError, match="PING"):
        pair.b.streams.receive(frame(PING, 8, stream=0) * 21, 0)
    pair = established()
    with pytest.raises(RemoteProtocolError, match="RST_STREAM"):
        pair.b.streams.receive(frame(RESET, 4, stream=9) * 201, 0)


def test_each_side_knows_who_the_other_is() -> None:
    pair = established()
    assert pair.b.peer == public_key(DIALLER)
    assert pair.a.peer == public_key(LISTENER)
