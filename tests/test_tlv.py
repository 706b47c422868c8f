"""Records of the DLC specification: one way to write everything, and no other way is read."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.contract import tlv
from protocols.contract.tlv import Reader

from .vectors import vector


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "00"),
        (252, "fc"),
        (253, "fd00fd"),
        (65_535, "fdffff"),
        (65_536, "fe00010000"),
        (2**32 - 1, "feffffffff"),
        (2**32, "ff0000000100000000"),
        (2**64 - 1, "ffffffffffffffffff"),
    ],
)
def test_bigsize(value: int, written: str) -> None:
    """The bounds of BOLT 1's "BigSize"."""
    assert tlv.bigsize(value).hex() == written
    reader = Reader(bytes.fromhex(written))
    assert reader.bigsize("size") == value
    assert reader.done


@pytest.mark.parametrize("written", ["fd00fc", "fe0000ffff", "ff00000000ffffffff"])
def test_a_longer_form_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"size is \d+ in more bytes than it needs"):
        Reader(bytes.fromhex(written)).bigsize("size")


@pytest.mark.parametrize("written", ["", "fd", "fd00", "feffffff", "ff00010000000000"])
def test_a_size_cut_short_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="size is cut short"):
        Reader(bytes.fromhex(written)).bigsize("size")


@given(st.text())
def test_text_comes_back_in_normal_form(text: str) -> None:
    written = tlv.text(text)
    assert tlv.text(Reader(written).text("name")) == written


def test_unicode_vectors() -> None:
    """dlcspecs dlc_hash_test.json: variants of a text are one text, written in normal form C."""
    for case in json.loads(vector("dlcspecs/dlc_hash_test.json").read_text()):
        expected = bytes.fromhex(case["Expected"])
        for variant in case["Variants"]:
            assert tlv.text(variant)[1:] == expected
            encoded = variant.encode()
            reader = Reader(tlv.bigsize(len(encoded)) + encoded)
            if encoded == expected:
                assert reader.text("name") == variant
            else:
                with pytest.raises(ValueError, match="name is not in Unicode's normal form C"):
                    reader.text("name")


@pytest.mark.parametrize(
    ("data", "read", "sentence"),
    [
        ("02c328", lambda reader: reader.text("name"), "name is not UTF-8"),
        ("0361", lambda reader: reader.text("name"), "name is cut short: 3 bytes are wanted, 1 are left"),
        ("ffffffffffffffffff", lambda reader: reader.text("name"), "name is cut short"),
        ("02", lambda reader: reader.flag("bit"), "bit is 2, allowed is 0 or 1"),
        ("", lambda reader: reader.flag("bit"), "bit is cut short"),
        ("00ffff", lambda reader: reader.uint(4, "number"), "number is cut short"),
        ("0500", lambda reader: reader.record(6, "event"), "event has type 5, allowed is 6"),
        ("060100", lambda reader: reader.record(6, "event").end("event"), "event has 1 bytes too many"),
        ("0602", lambda reader: reader.record(6, "event"), "event is cut short"),
    ],
)
def test_refusals_name_the_field(data: str, read: Callable[[Reader], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(Reader(bytes.fromhex(data)))


def test_signed_numbers() -> None:
    assert [Reader(bytes.fromhex(each)).int32("number") for each in ("ffffffff", "7fffffff")] == [-1, 2**31 - 1]
