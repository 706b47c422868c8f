"""What a hostile peer can do (network.md), and what stops it: each bound in frames or bytes, none in seconds.

The attacker is a session of ours up to the handshake; behind it, it says whatever plaintext the test wants.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import count

import pytest
from attrs import define, field
from hpack import Encoder

from protocols.errors import RemoteProtocolError
from protocols.transport.events import DataArrived, Event, StreamOpened
from protocols.transport.guard import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_DATA,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RESET,
    SETTINGS,
    WINDOW_UPDATE,
)
from protocols.transport.handshake import MAX_PAYLOAD, Handshake, public_key
from protocols.transport.http2 import SessionLimits
from protocols.transport.records import framed, pieces
from protocols.transport.session import Session
from tests.sessions import DIALLER, LISTENER, Pair, established
from tests.test_transport_guard import frame, head

PATH = "/cfd/ping/1"
UNKNOWN = 0x42
MEGABYTES_16 = 0xFFFFFF


@pytest.fixture(params=[False, True], ids=["ours", "h2"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attack is on both ways to speak HTTP/2."""
    monkeypatch.setattr("tests.sessions.REFERENCE", request.param)


@define
class Attacker:
    """The initiator of an established connection, whose HTTP/2 is made by hand."""

    pair: Pair = field(factory=established)
    encoder: Encoder = field(factory=Encoder)
    ids: count[int] = field(factory=lambda: count(1, 2))
    frames: int = 0
    said: int = 0
    """Bytes of plaintext."""

    @property
    def victim(self) -> Session:
        return self.pair.b

    def say(self, *frames: bytes, read: bool = True) -> list[Event]:
        """Send frames in one record each; `read`: what comes back is taken, as by a peer that reads."""
        events = []
        for plaintext in frames:
            self.frames += 1
            self.said += len(plaintext)
            for piece in pieces(plaintext):
                record = framed(self.pair.a._handshake.ciphers()[0].encrypt(piece))
                events += self.victim.receive(record, self.pair.now)
            if read:
                self.victim.data_to_send()
        return events

    def opening(self, flags: int = 0, **changed: str) -> bytes:
        """HEADERS of a new stream."""
        headers = {
            ":method": "POST",
            ":scheme": "cfd",
            ":authority": public_key(LISTENER).hex(),
            ":path": PATH,
        } | {name.replace("_", ":", 1): value for name, value in changed.items()}
        block = self.encoder.encode(list(headers.items()))
        return head(HEADERS, len(block), END_HEADERS | flags, stream=next(self.ids)) + block


def frames_until_the_end(attack: Callable[[Attacker], list[Event]], *, at_most: int) -> Attacker:
    """Repeat it until the victim has enough. Fails if it bears more than `at_most` frames."""
    attacker = Attacker()
    with pytest.raises(RemoteProtocolError):
        while attacker.frames <= at_most:
            attack(attacker)
    assert attacker.frames <= at_most
    assert attacker.victim.over
    return attacker


# -- frames that are refused at their header: nothing of their body is waited for


@pytest.mark.parametrize(
    "header",
    [
        head(DATA, MEGABYTES_16),
        head(HEADERS, MEGABYTES_16, END_HEADERS),
        head(SETTINGS, MEGABYTES_16, stream=0),
        head(UNKNOWN, MEGABYTES_16),
        head(SETTINGS, 54, stream=0),
        head(HEADERS, 20),
        head(CONTINUATION, 20, END_HEADERS),
        head(PUSH_PROMISE, 20, END_HEADERS),
    ],
    ids=lambda header: header[:5].hex(),
)
def test_nine_bytes_are_enough(header: bytes) -> None:
    attacker = Attacker()
    attacker.say(header[:-1])
    with pytest.raises(RemoteProtocolError) as refused:
        attacker.say(header[-1:])
    assert refused.value.code == "bad_frame"
    assert attacker.said == 9


# -- floods


@pytest.mark.parametrize(
    ("flood", "at_most"),
    [
        (frame(PING, 8, stream=0), 21),
        (frame(SETTINGS, 6, stream=0), 21),
        (head(SETTINGS, 48, stream=0) + b"".join(bytes([0x40, n]) + bytes(4) for n in range(8)), 21),
        (frame(DATA, 0), 21),
        (frame(PRIORITY, 5), 21),
        (frame(UNKNOWN, 0, stream=0), 21),
    ],
    ids=["ping", "settings", "unknown settings", "empty data", "priority", "unknown"],
)
def test_floods_end_after_so_many_frames(flood: bytes, at_most: int) -> None:
    def attack(attacker: Attacker) -> list[Event]:
        if not attacker.frames:
            attacker.say(attacker.opening())
            attacker.frames = 0
        return attacker.say(flood)

    frames_until_the_end(attack, at_most=at_most)


@pytest.mark.parametrize("flags", [0, END_STREAM], ids=["open", "ended"])
def test_a_rapid_reset_ends_after_201_streams(flags: int) -> None:
    """Also if each stream is ended before it is reset, which makes it look like an orderly close."""

    def attack(attacker: Attacker) -> list[Event]:
        opening = attacker.opening(flags)
        stream = int.from_bytes(opening[5:9], "big")
        return attacker.say(opening + head(RESET, 4, stream=stream) + (8).to_bytes(4, "big"))

    frames_until_the_end(attack, at_most=201)


def test_a_flood_in_one_record_is_no_cheaper() -> None:
    attacker = Attacker()
    with pytest.raises(RemoteProtocolError, match="PING"):
        attacker.say(frame(PING, 8, stream=0) * 3000)
    assert attacker.victim.unsent == 0 or len(attacker.victim.data_to_send()) < 200  # the farewell, and no pong


def refuse_all(attacker: Attacker, events: list[Event]) -> list[Event]:
    for event in events:
        if isinstance(event, StreamOpened):
            attacker.victim.streams.refuse(event.stream_id, 404, b"/cfd/ping/1\n/cfd/identify/1")
    return events


def crash_all(attacker: Attacker, events: list[Event]) -> list[Event]:
    for event in events:
        if isinstance(event, StreamOpened):
            attacker.victim.streams.reset_stream(event.stream_id, 2)
    return events


@pytest.mark.parametrize(
    "attack",
    [
        lambda attacker: attacker.say(frame(PING, 8, stream=0), read=False),
        lambda attacker: refuse_all(attacker, attacker.say(attacker.opening(), read=False)),
        lambda attacker: crash_all(attacker, attacker.say(attacker.opening(END_STREAM), read=False)),
    ],
    ids=["pings", "refusals", "resets"],
)
def test_answers_that_nobody_reads_are_bounded(attack: Callable[[Attacker], list[Event]]) -> None:
    """Slowly enough for every budget, but reading nothing."""
    most = 0

    def patiently(attacker: Attacker) -> list[Event]:
        nonlocal most
        attacker.pair.now += 2
        events = attack(attacker)
        most = max(most, attacker.victim.unsent)
        return events

    attacker = frames_until_the_end(patiently, at_most=2000)
    assert 8 * 1024 < most <= 17 * 1024
    assert attacker.said < 64 * 1024


# -- memory


def test_header_bombs_are_refused_by_what_they_unpack_to() -> None:
    attacker = Attacker()
    with pytest.raises(RemoteProtocolError, match="Oversized"):
        attacker.say(attacker.opening(x="y" * 3900))
    # One entry in the table, named a thousand times: 4 000 bytes become a megabyte.
    attacker = Attacker()
    attacker.say(attacker.opening(x="y" * 1000))
    with pytest.raises(RemoteProtocolError, match="Oversized"):
        attacker.say(head(HEADERS, 1000, END_HEADERS, stream=3) + b"\xbe" * 1000)


def test_a_stream_holds_one_window_and_not_a_byte_more() -> None:
    attacker = Attacker()
    attacker.say(attacker.opening())
    arrived = 0
    with pytest.raises(RemoteProtocolError, match="FlowControl"):
        for _ in range(10):
            for event in attacker.say(frame(DATA, MAX_DATA)):
                assert isinstance(event, DataArrived)
                arrived += len(event.data)
    assert 256 * 1024 - MAX_DATA < arrived <= 256 * 1024


def test_no_more_streams_than_allowed_each_with_one_window_at_most() -> None:
    attacker = Attacker(established(SessionLimits(streams=4, stream_window=1000)))
    arrived = 0
    for _ in range(4):
        opening = attacker.opening()
        events = attacker.say(opening, frame(DATA, 1000, stream=int.from_bytes(opening[5:9], "big")))
        arrived += sum(len(event.data) for event in events if isinstance(event, DataArrived))
    assert arrived == 4000
    with pytest.raises(RemoteProtocolError, match="Max inbound streams is 4"):
        attacker.say(attacker.opening())


def test_streams_that_are_over_are_forgotten() -> None:
    """Objects are counted: 800 dialogues behind the first 1 100 leave none behind."""
    pair = established()

    def dialogues(number: int) -> int:
        for _ in range(number):
            stream = pair.a.streams.open_stream(PATH)
            pair.a.streams.send_data(stream, b"question")
            pair.settle()
            pair.b.streams.send_data(stream, b"answer")
            pair.b.streams.close_stream(stream)
            pair.a.streams.close_stream(stream)
            pair.settle()
            pair.now += 1
        pair.take("a")
        pair.take("b")
        gc.collect()
        return len(gc.get_objects())

    before = dialogues(1100)
    assert dialogues(800) - before < 50


def test_unknown_settings_leave_nothing_behind() -> None:
    attacker = Attacker()
    settings = len(attacker.victim.streams._h2.remote_settings)
    for number in range(200):
        attacker.pair.now += 60
        payload = b"".join((0x4000 + 8 * number + n).to_bytes(2, "big") + bytes(4) for n in range(8))
        attacker.say(head(SETTINGS, 48, stream=0) + payload)
    assert len(attacker.victim.streams._h2.remote_settings) == settings


def test_a_window_that_overflows_ends_the_connection() -> None:
    attacker = Attacker()
    update = head(WINDOW_UPDATE, 4, stream=0) + (2**31 - 1).to_bytes(4, "big")
    with pytest.raises(RemoteProtocolError, match="FlowControl"):
        attacker.say(update)


@pytest.mark.parametrize("status", ["200000", "99", "302", "-1", "x"])
def test_a_refusals_status_is_one(status: str) -> None:
    """Statuses are counted by number: a peer must not make up any."""
    pair = established()
    stream = pair.a.streams.open_stream(PATH)
    pair.carry("b")
    block = Encoder().encode([(":status", status)])
    plaintext = head(HEADERS, len(block), END_HEADERS, stream=stream) + block
    with pytest.raises(RemoteProtocolError):
        pair.a.receive(framed(pair.b._handshake.ciphers()[0].encrypt(plaintext)), 0)


# -- the handshake's payloads are guarded like any other bytes


PAYLOADS = [
    head(DATA, MEGABYTES_16),
    head(SETTINGS, MEGABYTES_16, stream=0),
    head(CONTINUATION, 20, END_HEADERS),
    frame(SETTINGS, 0, stream=0) * 21,
    frame(SETTINGS, 0, stream=0) + frame(PING, 8, stream=0) * 12 + head(PING, 9),
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    frame(PING, 8, stream=0),
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
@pytest.mark.parametrize("who", ["initiator", "responder"])
def test_handshake_payloads_are_guarded(payload: bytes, who: str) -> None:
    assert len(payload) <= MAX_PAYLOAD
    if who == "initiator":
        victim = Session(secret=LISTENER, ephemeral=bytes([9]) * 32)
        attacker = Handshake(secret=DIALLER, ephemeral=bytes([7]) * 32, peer=public_key(LISTENER))
        victim.receive(framed(attacker.write()), 0)
        attacker.read(victim.data_to_send()[2:])
        message = framed(attacker.write(payload if payload.startswith(b"GET") else PREFACE + payload))
    else:
        victim = Session(secret=DIALLER, ephemeral=bytes([7]) * 32, peer=public_key(LISTENER))
        attacker = Handshake(secret=LISTENER, ephemeral=bytes([9]) * 32, peer=None)
        attacker.read(victim.data_to_send()[2:])
        message = framed(attacker.write(payload))
    with pytest.raises(RemoteProtocolError):
        victim.receive(message, 0)
    assert victim.over


@pytest.mark.parametrize("length", [0, 47, 49, 65535])
def test_a_handshake_message_of_another_size_is_refused_at_its_length(length: int) -> None:
    victim = Session(secret=LISTENER, ephemeral=bytes([9]) * 32)
    victim.receive(length.to_bytes(2, "big")[:1], 0)
    with pytest.raises(RemoteProtocolError) as refused:
        victim.receive(length.to_bytes(2, "big")[1:], 0)
    assert refused.value.code == "bad_length"


def test_who_does_not_know_the_key_gets_no_byte() -> None:
    victim = Session(secret=LISTENER, ephemeral=bytes([9]) * 32)
    stranger = Handshake(secret=DIALLER, ephemeral=bytes([7]) * 32, peer=public_key(DIALLER))
    with pytest.raises(RemoteProtocolError):
        victim.receive(framed(stranger.write()), 0)
    assert victim.data_to_send() == b""
