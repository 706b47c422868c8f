"""The bytes of every message of every protocol, one file each, named after protocol, version and message.

They are what another implementation, or an older node, speaks: a file is never changed. A missing one is written when
UPDATE_GOLDEN is set; a message that changes its shape belongs to a new version of its protocol.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
from pathlib import Path

import pytest
from attrs import evolve

import protocols
from protocols.codec import Message, Protocol, Rejected, wire_name
from protocols.contract.terms import Side
from protocols.contract_setup import Accepted, Input, MakerContract, MakerLock, PlaceOrder, TakerContract, TakerLock
from protocols.identify import Identity, PeerRole
from protocols.offers import Offers
from protocols.ping import Ping, Pong
from protocols.positions import PositionState, PositionStates, Proof, Proofs
from protocols.rollover import MakerCommit, ProposeRollover, Revocation, RolloverTerms, TakerSignatures
from protocols.settlement import AcceptClose, AcceptSpend, MakerPartial, ProposeClose, ProposeSpend, TakerPartial
from protocols.testing import Pair
from tests.rollovers import Nodes
from tests.settlements import Two
from tests.setups import OFFER, setup_pair

GOLDEN = Path(__file__).parent / "golden" / "messages"

PROTOCOLS: list[Protocol] = [
    module.PROTOCOL
    for info in pkgutil.iter_modules(protocols.__path__)
    if hasattr(module := importlib.import_module(f"protocols.{info.name}"), "PROTOCOL")
]


def some(count: int, first: int = 0) -> bytes:
    """Bytes that count upwards."""
    return bytes((first + index) % 256 for index in range(count))


INPUTS = (
    Input(some(32, 0x20), 1, 20_000_000, b"\x51\x20" + some(32, 0x40)),
    Input(some(32, 0x60), 0xFFFF_FFFF, 330, b"\x00\x14" + some(20, 0x80)),
)

EXAMPLES: list[Message] = [
    Ping(some(32)),
    Pong(some(32, 0x80)),
    Identity("cfdnode", "0.1.0", ("/cfd/identify/1", "/cfd/ping/1"), "regtest", PeerRole.MAKER),
    Offers(3, (OFFER, evolve(OFFER, id=some(16, 0xF0), side=Side.LONG, price="53999.5", funding_rate="-0.00012345"))),
    PlaceOrder(some(16), some(16, 0x10), 3_500, 5, "54000"),
    Accepted(
        event_ids=("/x/BitMEX/BXBT/2026-11-01T22:00:00.price?n=20", "/x/BitMEX/BXBT/2026-11-01T23:00:00.price?n=20"),
        announcements_hash=some(32),
        fee_rate=2,
        fund=b"\x02" + some(32, 1),
        publish=b"\x03" + some(32, 2),
        revoke=b"\x02" + some(32, 3),
        inputs=INPUTS,
        change_script=b"\x51\x20" + some(32, 4),
        payout_script=b"\x00\x14" + some(20, 5),
    ),
    TakerContract(
        fund=b"\x02" + some(32, 1),
        publish=b"\x03" + some(32, 2),
        revoke=b"\x02" + some(32, 3),
        inputs=INPUTS[:1],
        change_script=b"\x51\x20" + some(32, 4),
        payout_script=b"\x00\x14" + some(20, 5),
        refund_signature=some(64, 6),
        cet_signatures=(some(130, 7), b"", some(65, 8)),
    ),
    MakerContract(some(64, 6), (some(130, 7), b"", some(65, 8)), some(65, 9)),
    TakerLock(some(65, 9), ((some(64, 10),), (some(71, 11), b"\x02" + some(32, 12)))),
    MakerLock(((some(64, 10),), (some(71, 11), b"\x02" + some(32, 12)))),
    ProposeRollover(some(16), 0, b"\x02" + some(32, 1), b"\x03" + some(32, 2)),
    RolloverTerms(
        event_ids=("/x/BitMEX/BXBT/2026-11-02T22:00:00.price?n=20", "/x/BitMEX/BXBT/2026-11-02T23:00:00.price?n=20"),
        announcements_hash=some(32),
        funding_rate="-0.00012345",
        price="54321.5",
        funding_to_maker=-109,
        maker_account=6_873,
        publish=b"\x03" + some(32, 2),
        revoke=b"\x02" + some(32, 3),
        refund_signature=some(64, 6),
        cet_signatures=(some(130, 7), b"", some(65, 8)),
    ),
    TakerSignatures(some(64, 6), (some(130, 7), b"", some(65, 8)), some(65, 9)),
    MakerCommit(some(65, 9)),
    Revocation(some(32, 10)),
    ProposeClose(some(16), "60000.5", b"\x02" + some(32, 1) + b"\x03" + some(32, 2)),
    AcceptClose(b"\x03" + some(32, 3) + b"\x02" + some(32, 4), some(32, 5)),
    TakerPartial(some(32, 6)),
    MakerPartial(some(32, 7)),
    ProposeSpend(some(16), some(32, 8), "/x/BitMEX/BXBT/2026-11-01T22:00:00.price?n=20", some(64, 9)),
    AcceptSpend(some(64, 10)),
    PositionStates((PositionState(some(16), 0, b"", 0, 0), PositionState(some(16, 1), 7, some(32), 8, 7)), last=True),
    Proofs((Proof(some(16), 7, some(107, 1), some(65, 2), b"\x02" + some(32, 3)),), last=False),
]
REJECTED = Rejected("bad_quantity", "quantity is 150, allowed is a multiple of 100 from 100 to 10000 — or more")


def named(protocol: Protocol, message: Message) -> str:
    _, _, name, version = protocol.path.split("/")
    return f"{name}.{version}.{wire_name(type(message))}"


def examples(protocol: Protocol) -> list[Message]:
    own = [message for message in EXAMPLES if type(message) in protocol.codec.kinds.values()]
    return [*own, REJECTED]


CASES = {named(protocol, message): (protocol, message) for protocol in PROTOCOLS for message in examples(protocol)}


def golden(name: str, suffix: str, new: str) -> str:
    file = GOLDEN / f"{name}.{suffix}"
    if not file.exists() and os.environ.get("UPDATE_GOLDEN"):
        file.write_text(new + "\n", encoding="ascii")
    return file.read_text(encoding="ascii").strip()


@pytest.mark.parametrize("name", CASES)
def test_a_messages_bytes_are_what_they_always_were(name: str) -> None:
    protocol, message = CASES[name]
    data = protocol.codec.encode(message)
    pinned = golden(name, "hex", data.hex())
    assert data.hex() == pinned
    decoder = protocol.codec.decoder()
    decoder.feed(bytes.fromhex(pinned))
    assert decoder.next() == message
    assert decoder.empty


def test_every_message_of_every_protocol_has_a_file() -> None:
    assert len(PROTOCOLS) >= 4
    assert set(CASES) == {
        f"{protocol.path.split('/')[2]}.{protocol.path.split('/')[3]}.{name}"
        for protocol in PROTOCOLS
        for name in protocol.codec.kinds
    }
    assert {file.name.removesuffix(".hex") for file in GOLDEN.glob("*.hex")} == set(CASES)


def lines_of(pair: Pair) -> str:
    """A digest of every message that both sides send, the opener's first."""
    opener, answerer = pair.run()
    assert opener.error is answerer.error is None
    return "\n".join(
        f"{wire_name(type(message))} {hashlib.sha256(pair.codec.encode(message)).hexdigest()}"
        for message in (*opener.sent, *answerer.sent)
    )


def test_a_whole_setup_is_the_same_to_the_byte() -> None:
    """Keys, transactions, CETs, signature hashes, signatures: one bit elsewhere, and two nodes cannot trade."""
    lines = lines_of(setup_pair())
    assert lines == golden("contract_setup.1", "sha256", lines)


def test_a_whole_settlement_is_the_same_to_the_byte() -> None:
    """A close and a cooperative spend: transactions, nonces for a given chance, signatures."""
    lines = lines_of(Two().close()) + "\n" + lines_of(Two().spend())
    assert lines == golden("settlement.1", "sha256", lines)


def test_a_whole_rollover_is_the_same_to_the_byte() -> None:
    pair = Nodes().roll()
    lines = [
        f"{wire_name(type(message))} {hashlib.sha256(pair.codec.encode(message)).hexdigest()}"
        for message in (*pair.a.sent, *pair.b.sent)
    ]
    assert "\n".join(lines) == golden("rollover.1", "sha256", "\n".join(lines))
