"""The codec: what it takes, what it refuses and in which words, and that nothing a peer sends makes it do otherwise."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from typing import Any

import msgpack
import pytest
from attrs import evolve, field, frozen
from hypothesis import example, given
from hypothesis import strategies as st

from protocols import contract_setup, identify, offers, ping, positions
from protocols.codec import Codec, Message, Protocol, Rejected, exactly, printable, wire_name
from protocols.errors import LocalError, RemoteProtocolError
from protocols.identify import Identity
from protocols.offers import Offers
from protocols.ping import Ping
from protocols.positions import PositionState, PositionStates
from tests.setups import OFFER


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@frozen
class Part:
    name: str
    weight: int


@frozen
class Sample(Message):
    number: int
    text: str
    data: bytes = field(validator=exactly(4))
    sure: bool
    colour: Colour
    parts: tuple[Part, ...]
    stacks: tuple[tuple[bytes, ...], ...] = ()


@frozen
class OtherThing(Message):
    pass


LIMIT = 2500
CODEC = Codec(Sample, OtherThing, limit=LIMIT)
SAMPLE = Sample(7, "seven", b"1234", True, Colour.BLUE, (Part("a", 1), Part("b", -2)), ((b"x",), ()))
PLAIN: dict[str, Any] = {
    "type": "sample",
    "number": 7,
    "text": "seven",
    "data": b"1234",
    "sure": True,
    "colour": "blue",
    "parts": [{"name": "a", "weight": 1}, {"name": "b", "weight": -2}],
    "stacks": [[b"x"], []],
}


def decode(data: bytes, codec: Codec = CODEC) -> Message | None:
    decoder = codec.decoder()
    decoder.feed(data)
    return decoder.next()


def refusal(data: bytes, codec: Codec = CODEC) -> str:
    with pytest.raises(RemoteProtocolError) as refused:
        decode(data, codec)
    assert refused.value.code == "malformed"
    assert refused.value.sentence.isprintable()
    assert len(refused.value.sentence) <= 500
    return refused.value.sentence


def refused(**changes: Any) -> str:
    return refusal(msgpack.packb({**PLAIN, **changes}))


def test_a_message_is_a_map_with_its_type_and_fields() -> None:
    data = CODEC.encode(SAMPLE)
    assert msgpack.unpackb(data) == PLAIN
    assert decode(data) == SAMPLE
    assert wire_name(OtherThing) == "other_thing"
    assert decode(CODEC.encode(OtherThing())) == OtherThing()


@given(st.lists(st.sampled_from([SAMPLE, OtherThing(), Rejected("no", "not today")])), st.data())
def test_messages_follow_one_another_and_may_be_cut_anywhere(messages: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(CODEC.encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    decoder, got = CODEC.decoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoder.feed(stream[start:end])
        while (message := decoder.next()) is not None:
            got.append(message)
    assert got == messages
    assert decoder.empty


@given(st.integers(1, len(CODEC.encode(SAMPLE)) - 1))
def test_a_part_of_a_message_is_never_nothing(cut: int) -> None:
    decoder = CODEC.decoder()
    decoder.feed(CODEC.encode(SAMPLE)[:cut])
    assert not decoder.empty
    assert decoder.next() is None
    assert not decoder.empty


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"number": "7"}, "sample: number: must be int, got str"),
        ({"number": True}, "sample: number: must be int, got bool"),
        ({"number": 7.0}, "sample: number: must be int, got float"),
        ({"number": None}, "sample: number: must be int, got NoneType"),
        ({"text": b"seven"}, "sample: text: must be str, got bytes"),
        ({"data": "1234"}, "sample: data: must be bytes, got str"),
        ({"data": b"123"}, "sample: data must be 4 bytes, got 3"),
        ({"sure": 1}, "sample: sure: must be bool, got int"),
        ({"colour": "green"}, "sample: colour: must be one of red, blue, got 'green'"),
        ({"colour": ["red"]}, "sample: colour: must be one of red, blue, got ['red']"),
        ({"parts": {"name": "a"}}, "sample: parts: must be a list, got dict"),
        ({"parts": b"ab"}, "sample: parts: must be a list, got bytes"),
        ({"parts": [{"name": "a", "weight": 1}, 5]}, "sample: parts: [1]: must be a map, got int"),
        ({"parts": [["a", 1]]}, "sample: parts: [0]: must be a map, got list"),
        ({"parts": [{"name": "a", "weight": "1"}]}, "sample: parts: [0]: weight: must be int, got str"),
        ({"parts": [{"name": "a"}]}, "sample: parts: [0]: weight: is missing"),
        ({"parts": [{"name": "a", "weight": 1, "height": 2}]}, "sample: parts: [0]: unknown field height"),
        ({"stacks": [[b"x"], "y"]}, "sample: stacks: [1]: must be a list, got str"),
        ({"stacks": [[b"x", "y"]]}, "sample: stacks: [0]: [1]: must be bytes, got str"),
        ({"more": 1, "much": 2}, "sample: unknown field more, much"),
        ({"type": "simple"}, "unknown message type 'simple'; spoken here: sample, other_thing, rejected"),
        ({"type": 5}, "a message must be a map with a field 'type'"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], said: str) -> None:
    assert refused(**changes) == said


@pytest.mark.parametrize("missing", ["number", "text", "data", "sure", "colour", "parts"])
def test_a_missing_field_is_named(missing: str) -> None:
    plain = {name: value for name, value in PLAIN.items() if name != missing}
    assert refusal(msgpack.packb(plain)) == f"sample: {missing}: is missing"


@pytest.mark.parametrize("value", [None, 5, "sample", [PLAIN], {}, {"number": 7}])
def test_anything_but_a_typed_map_is_no_message(value: object) -> None:
    assert refusal(msgpack.packb(value)) == "a message must be a map with a field 'type'"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xc1", "FormatError"),
        (b"\x82\xa4type\xa5other\xa4type\xa5other", "a key is repeated"),
        (b"\x81\x05\x01", "int is not allowed for map key"),
        (b"\x81\xc4\x04type\xa5other", "a key is no string"),
        (b"\x81\x90\x01", "list is not allowed for map key"),
        (b"\xa1\xff", "can't decode byte 0xff"),
        (b"\xd4\x05\x00", "exceeds max_ext_len"),
        (b"\xd6\xff\x00\x00\x00\x00", "exceeds max_ext_len"),  # a timestamp
        (b"\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
        (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
    ],
)
def test_messagepack_that_no_message_uses(data: bytes, said: str) -> None:
    assert said in refusal(data)


def test_an_extension_type_is_no_list() -> None:
    """MessagePack hands it over as a tuple."""
    empty = msgpack.ExtType(5, b"")
    assert refused(parts=empty) == "sample: parts: must be a list, got ExtType"
    assert refusal(msgpack.packb(empty)) == "a message must be a map with a field 'type'"


def test_deep_nesting_is_refused() -> None:
    roomy = Codec(Sample, limit=10_000)
    assert "StackError" in refusal(b"\x91" * 9_000, roomy)
    deep: object = 1
    for _ in range(500):
        deep = [deep]
    for name in PLAIN.keys() - {"type"}:
        assert refusal(msgpack.packb({**PLAIN, name: deep}), roomy).startswith(f"sample: {name}: ")


@pytest.mark.parametrize(
    "piece",
    [b"\x91", b"\xc4\x80" + bytes(128), b"\x81\xa1k", b"\xdc\x10\x00" + b"\xa1a" * 4095],
    ids=["nesting", "bytes", "maps", "lists"],
)
def test_no_message_exceeds_the_limit_however_it_is_made(piece: bytes) -> None:
    """A list may have 4 096 elements and each of them the limit's bytes: only the whole counts."""
    for step in (1, 70, LIMIT, 4 * LIMIT):
        decoder, fed = CODEC.decoder(), 0
        stream = b"\xdc\x10\x00" + piece * LIMIT * 2
        with pytest.raises(RemoteProtocolError, match=f"a message exceeds {LIMIT} bytes|StackError") as refused:
            while fed < len(stream):
                decoder.feed(stream[fed : fed + step])
                fed += step
                assert decoder.next() is None
        assert refused.value.code == "malformed"
        assert fed <= LIMIT + step


def test_a_message_of_just_the_limit_passes_behind_others() -> None:
    whole = evolve(SAMPLE, text="")
    whole = evolve(whole, text="x" * (LIMIT - len(CODEC.encode(whole)) - 2))  # a string of this length: 2 bytes more
    data = CODEC.encode(whole)
    assert len(data) == LIMIT
    decoder = CODEC.decoder()
    decoder.feed(data * 50)
    for _ in range(50):
        assert decoder.next() == whole
    assert decoder.empty


def test_what_we_must_not_send_is_our_own_fault() -> None:
    with pytest.raises(LocalError, match="Ping is no message of this protocol"):
        CODEC.encode(Ping(bytes(32)))
    with pytest.raises(LocalError, match=f"at most {LIMIT} are allowed"):
        CODEC.encode(evolve(SAMPLE, text="x" * LIMIT))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [("No", "x"), ("", "x"), ("a b", "x"), ("a" * 65, "x"), ("no", "a\nb"), ("no", "\x1b[31m"), ("no", "x" * 501)],
)
def test_a_rejection_cannot_harm_a_log_or_a_terminal(code: str, sentence: str) -> None:
    plain = {"type": "rejected", "code": code, "sentence": sentence}
    assert refusal(msgpack.packb(plain, use_bin_type=True), Codec(limit=2000)).startswith("rejected: ")


def test_every_protocol_has_room_for_a_rejection() -> None:
    longest = Rejected("a" * 64, "\N{MATHEMATICAL BOLD CAPITAL A}" * 500)
    for codec in (Codec(limit=1), ping.PROTOCOL.codec):
        assert len(codec.encode(longest)) <= codec.limit
        assert decode(codec.encode(longest), codec) == longest


@given(st.text(max_size=1200))
@example("x" * 500)
@example("x" * 501)
def test_any_text_is_made_fit_for_a_rejection(text: str) -> None:
    shown = printable(text)
    assert Rejected("any", shown).sentence == shown
    if text.isprintable() and len(text) <= 500:
        assert shown == text


PROTOCOLS = [ping.PROTOCOL, identify.PROTOCOL, offers.PROTOCOL, contract_setup.PROTOCOL, positions.PROTOCOL]
VALID = [
    ping.PROTOCOL.codec.encode(Ping(bytes(32))),
    offers.PROTOCOL.codec.encode(Offers(1, (OFFER,))),
    positions.PROTOCOL.codec.encode(PositionStates((PositionState(bytes(16), 1, bytes(32), 1, 1),), last=True)),
    identify.PROTOCOL.codec.encode(Identity("a", "1", ("/cfd/ping/1",), "regtest", identify.PeerRole.MAKER)),
]

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9) | st.binary(max_size=3), inner),
    max_leaves=8,
)


@st.composite
def bent_message(draw: st.DrawFn) -> bytes:
    """A real message in which one value, at any depth, is replaced."""
    value = msgpack.unpackb(draw(st.sampled_from(VALID)))
    at: Any = value
    while True:
        key = draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
            at = at[key]
            continue
        at[key] = draw(plain_values)
        data: bytes = msgpack.packb(value)
        return data


@given(st.binary(max_size=300) | plain_values.map(msgpack.packb) | bent_message(), st.sampled_from(PROTOCOLS))
def test_nothing_that_a_peer_sends_raises_anything_else(data: bytes, protocol: Protocol) -> None:
    decoder = protocol.codec.decoder()
    decoder.feed(data)
    with suppress(RemoteProtocolError):
        while (message := decoder.next()) is not None:
            assert type(message) in protocol.codec.kinds.values()
