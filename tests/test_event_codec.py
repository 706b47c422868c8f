"""Event classes to bytes and back."""

import traceback
from enum import Enum

import msgpack
import pytest
from attrs import define, field, frozen
from hypothesis import given
from hypothesis import strategies as st

from node.eventstore.codec import BadEvent, EventCodec
from node.eventstore.interface import Blob, NewEvent, Recorded

codec = EventCodec()


class Side(Enum):
    LONG = "long"
    SHORT = "short"


@frozen
class Input:
    txid: bytes
    value: int


@codec.event("AttemptStarted")
@frozen
class AttemptStarted:
    order_id: bytes
    side: Side
    quantity: int
    price: str
    inputs: tuple[Input, ...]
    by_hand: bool = False
    change: Input | None = None
    letters: tuple[str, ...] = ()
    salt: bytes = field(default=b"", repr=False)


def _named_side(v1: dict[str, object]) -> dict[str, object]:
    return {"side": "long" if v1["maker_long"] else "short"}


def _with_price(v2: dict[str, object]) -> dict[str, object]:
    return {**v2, "price": "0.01", "more": [[1, 2], []]}


@codec.event("OrderPlaced", upcasters=(_named_side, _with_price))
@frozen
class OrderPlacedToday:
    side: Side
    price: str
    more: tuple[tuple[int, ...], ...]


def stored(new: NewEvent) -> Recorded:
    return Recorded(7, "stream", 1, new.name, new.version, new.data, 0.0)


def raw(name: str, version: int, plain: object) -> Recorded:
    return stored(NewEvent(name, version, msgpack.packb(plain)))


EXAMPLE = AttemptStarted(b"\x01" * 4, Side.SHORT, 2**53, "54000.5", (Input(b"\xff", 330),), salt=b"salt")


def test_the_bytes_of_an_event_are_these() -> None:
    blob = Blob("cets", b"large")
    new = codec.encode(EXAMPLE, blob)
    assert (new.name, new.version, new.blobs) == ("AttemptStarted", 1, (blob,))
    assert new.data.hex() == (
        "89a86f726465725f6964c40401010101a473696465a573686f7274a87175616e74697479cf0020000000000000a57072696365a73534"
        "3030302e35a6696e707574739182a474786964c401ffa576616c7565cd014aa762795f68616e64c2a66368616e6765c0a76c65747465"
        "727390a473616c74c40473616c74"
    )
    assert codec.decode(stored(new)) == EXAMPLE


inputs = st.builds(Input, st.binary(), st.integers(-(2**63), 2**64 - 1))


@given(
    st.builds(
        AttemptStarted,
        order_id=st.binary(),
        side=st.sampled_from(Side),
        quantity=st.integers(-(2**63), 2**64 - 1),
        price=st.text(),
        inputs=st.lists(inputs, max_size=3).map(tuple),
        by_hand=st.booleans(),
        change=st.none() | inputs,
        letters=st.lists(st.text(), max_size=3).map(tuple),
        salt=st.binary(),
    )
)
def test_every_event_comes_back_as_it_was(event: AttemptStarted) -> None:
    new = codec.encode(event)
    assert codec.decode(stored(new)) == event
    assert codec.encode(event) == new


def test_old_versions_are_upcast_step_by_step() -> None:
    today = OrderPlacedToday(Side.SHORT, "0.01", ((1, 2), ()))
    assert codec.names == {"AttemptStarted": 1, "OrderPlaced": 3}
    assert codec.decode(raw("OrderPlaced", 1, {"maker_long": False})) == today
    assert codec.decode(raw("OrderPlaced", 2, {"side": "short"})) == today
    assert codec.encode(today).version == 3
    assert codec.decode(stored(codec.encode(today))) == today


@pytest.mark.parametrize(
    "recorded", [raw("OrderPlaced", 4, {}), raw("OrderPlaced", 0, {}), raw("OrderPlacedToday", 1, {})]
)
def test_an_unknown_name_or_version_is_refused(recorded: Recorded) -> None:
    with pytest.raises(BadEvent) as refused:
        codec.decode(recorded)
    assert refused.value.code == "unknown_event"
    assert recorded.name in refused.value.sentence


PLAIN = msgpack.unpackb(codec.encode(EXAMPLE).data)
SECRET = "hunter2"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"side": SECRET}, "$.side"),
        ({"quantity": SECRET}, "$.quantity"),
        ({"quantity": True}, "$.quantity"),
        ({"quantity": 1.0}, "$.quantity"),
        ({"price": 1}, "$.price"),
        ({"price": SECRET.encode()}, "$.price"),
        ({"order_id": SECRET}, "$.order_id"),
        ({"by_hand": 1}, "$.by_hand"),
        ({"inputs": [{"txid": b"", "value": SECRET}]}, "$.inputs[0].value"),
        ({"inputs": SECRET}, "$.inputs"),
        ({"inputs": [{"txid": b""}]}, "$.inputs[0].value"),
        ({"change": 5}, "$.change"),
        ({"letters": SECRET}, "written again"),
        ({"inputs": {}}, "written again"),
        ({"surprise": SECRET}, "surprise"),
    ],
)
def test_a_wrong_field_is_named_and_no_value_is_shown(change: dict[str, object], where: str) -> None:
    with pytest.raises(BadEvent) as refused:
        codec.decode(raw("AttemptStarted", 1, PLAIN | change))
    assert where in refused.value.sentence
    assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("missing", sorted(PLAIN))
def test_a_missing_field_is_refused_even_if_the_class_has_a_default(missing: str) -> None:
    with pytest.raises(BadEvent):
        codec.decode(raw("AttemptStarted", 1, {name: PLAIN[name] for name in PLAIN if name != missing}))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x01", b"\x90", b"\x80\x80", b"\x81\x01\x02"])
def test_bytes_that_are_no_map_of_fields_are_refused(data: bytes) -> None:
    with pytest.raises(BadEvent):
        codec.decode(Recorded(7, "stream", 1, "AttemptStarted", 1, data, 0.0))


def test_names_are_given_once_and_only_registered_classes_are_written() -> None:
    with pytest.raises(ValueError, match="already an event AttemptStarted"):
        codec.event("AttemptStarted")(Input)

    @define
    class Unregistered:
        pass

    with pytest.raises(KeyError):
        codec.encode(Unregistered())
