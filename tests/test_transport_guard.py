"""The guard: what none of our peers sends, or sends so seldom, ends the connection (network.md, hostile peers)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.transport.guard import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GO_AWAY,
    HEADERS,
    MAX_DATA,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RESET,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Budgets,
    Guard,
)

UNKNOWN = 0x42


def frame(kind: int, length: int, flags: int = 0, *, stream: int = 1) -> bytes:
    return head(kind, length, flags, stream=stream) + bytes(length)


def head(kind: int, length: int, flags: int = 0, *, stream: int = 1) -> bytes:
    return length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")


def guard(*, preface: bool = False) -> Guard:
    return Guard(Budgets(), preface=preface)


FINE = [
    head(DATA, MAX_DATA),
    frame(DATA, 0, END_STREAM),
    frame(HEADERS, 4096, END_HEADERS),
    frame(HEADERS, 1, END_HEADERS | END_STREAM),
    frame(PRIORITY, 5),
    frame(RESET, 4),
    frame(SETTINGS, 0, 1),
    frame(SETTINGS, 48),
    frame(PING, 8),
    frame(GO_AWAY, 8),
    frame(GO_AWAY, 8 + 256),
    frame(WINDOW_UPDATE, 4),
    frame(UNKNOWN, 1024),
]
REFUSED = [
    head(DATA, MAX_DATA + 1),
    head(DATA, 0xFFFFFF),
    head(DATA, 10, PADDED),
    head(HEADERS, 0, END_HEADERS),
    head(HEADERS, 4097, END_HEADERS),
    head(HEADERS, 10),
    head(HEADERS, 10, END_HEADERS | PADDED),
    head(HEADERS, 10, END_HEADERS | WITH_PRIORITY),
    head(PRIORITY, 4),
    head(RESET, 5),
    head(SETTINGS, 49),
    head(PING, 7),
    head(GO_AWAY, 7),
    head(GO_AWAY, 8 + 257),
    head(WINDOW_UPDATE, 3),
    head(PUSH_PROMISE, 8),
    head(CONTINUATION, 8),
    head(UNKNOWN, 1025),
]


@pytest.mark.parametrize("data", FINE, ids=lambda data: data[:5].hex())
def test_frames_that_pass(data: bytes) -> None:
    assert guard().check(data, 0) == len(data)


@pytest.mark.parametrize("data", REFUSED, ids=lambda data: data[:5].hex())
def test_frames_that_are_refused_at_their_header(data: bytes) -> None:
    walker = guard()
    walker.check(data[:8], 0)  # not before the header is there
    with pytest.raises(RemoteProtocolError):
        walker.check(data[8:], 0)


@given(st.lists(st.sampled_from(FINE[1:]), max_size=15), st.lists(st.integers(1, 50), min_size=1), st.booleans())
def test_it_walks_the_same_however_the_bytes_are_cut(frames: list[bytes], cuts: list[int], preface: bool) -> None:
    data = (PREFACE if preface else b"") + b"".join(frames)
    walker = guard(preface=preface)
    position, turn = 0, 0
    while position < len(data):
        size = cuts[turn % len(cuts)]
        walker.check(data[position : position + size], 0)
        position, turn = position + size, turn + 1
    # In step with the frames: exactly here a header is looked for.
    with pytest.raises(RemoteProtocolError, match="CONTINUATION"):
        walker.check(frame(CONTINUATION, 0), 0)


def test_the_preface_must_be_there() -> None:
    with pytest.raises(RemoteProtocolError, match="preface"):
        guard(preface=True).check(b"PRI * HTTP/1", 0)


@pytest.mark.parametrize(
    ("data", "burst", "rate"),
    [
        (frame(RESET, 4), 200, 20.0),
        (frame(PING, 8), 20, 1.0),
        (frame(SETTINGS, 6), 20, 20 / 60),
        (frame(DATA, 0), 20, 1.0),
        (frame(PRIORITY, 5), 20, 1.0),
        (frame(UNKNOWN, 0), 20, 1.0),
    ],
    ids=["reset", "ping", "settings", "empty data", "priority", "unknown"],
)
def test_budgets_grow_back_at_their_rate(data: bytes, burst: int, rate: float) -> None:
    walker = guard()
    assert walker.check(data * burst, 100.0) == burst * len(data)
    with pytest.raises(RemoteProtocolError, match="too many"):
        walker.check(data, 100.0)

    walker = guard()
    assert walker.check(data * burst, 100.0) == burst * len(data)
    assert walker.check(data * 5, 100.0 + 5.01 / rate) == 5 * len(data)
    with pytest.raises(RemoteProtocolError, match="too many"):
        walker.check(data, 100.0 + 5.01 / rate)

    walker = guard()
    assert walker.check(data * burst, 100.0) == burst * len(data)
    assert walker.check(data * burst, 100.0 + 10_000) == burst * len(data)  # it never grows beyond the burst
    with pytest.raises(RemoteProtocolError, match="too many"):
        walker.check(data, 100.0 + 10_000)


def test_data_and_window_updates_are_not_counted() -> None:
    data = (frame(DATA, 1) + frame(WINDOW_UPDATE, 4)) * 5000
    assert guard().check(data, 0) == len(data)


def test_what_comes_before_a_reset_too_many_may_be_taken_first() -> None:
    walker, reset = guard(), frame(RESET, 4)
    fine = frame(DATA, 3)[5:] + reset * 200
    walker.check(frame(DATA, 3)[:5], 0)
    assert walker.check(fine + 3 * reset, 0) == len(fine)
    for _ in range(2):  # these were orderly closes, as it turned out
        walker.resets.give_back()
    assert walker.check(fine + 3 * reset, 0, len(fine)) == len(fine + 2 * reset)
    with pytest.raises(RemoteProtocolError, match="too many RST_STREAM"):
        walker.check(fine + 3 * reset, 0, len(fine + 2 * reset))
