"""The Electrum client: against the regtest server, against servers that fail or lie, and in front of BDK's client."""

import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import bdkpython as bdk
import pytest
import trio
import trio.testing
from bitcoin.core import CTransaction, CTxIn, CTxOut
from bitcoin.core.script import CScript
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from node.chain import chainsync, session
from node.chain.electrum import BroadcastRejected, ElectrumClient, run_electrum, script_hash
from node.chain.forward import Forwarder
from node.chain.servers import ServerAddress, Servers
from node.chain.session import ServerError, ServerLost, Session
from protocols.contract.funding import OutPoint
from protocols.errors import LocalError, WorldError
from tests.electrums import CLOCK, OTHER, REGTEST, Between, dial, give, regtest, serve, until
from tests.test_headers import run
from tests.test_regtest_mempool import COIN, HOME, World, pay


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with regtest(tmp_path) as world:
        yield world


@pytest.fixture
async def server(world: World, nursery: trio.Nursery) -> Between:
    return await serve(world, nursery)


@pytest.fixture
async def client(server: Between, nursery: trio.Nursery) -> ElectrumClient:
    return await dial(nursery, server)


# What it is asked


async def test_the_tip_follows_the_chain(world: World, client: ElectrumClient) -> None:
    assert (client.tip.height, client.tip.hash) == (120, world.chain.tip)
    tips = client.tips()
    assert await anext(tips) == client.tip
    world.mine()
    with trio.fail_after(5):
        tip = await anext(tips)
    assert (tip.height, tip.hash, tip.header) == (121, world.chain.tip, world.chain.header(121))
    assert client.headers.header(7) == world.chain.header(7)


async def test_the_tip_follows_a_reorganisation(world: World, client: ElectrumClient) -> None:
    await client.request("server.ping")
    parent = world.chain.block_hash(111)
    for _ in range(11):
        block = world.chain.build(parent=parent)
        parent = world.chain.submit(block)
    assert world.chain.tip == parent
    await until(lambda: client.tip.hash == parent)
    assert client.tip.height == 122
    assert [client.headers.hash(h) for h in range(123)] == [world.chain.block_hash(h) for h in range(123)]


async def test_the_tip_that_was_asked_for_does_not_undo_what_was_announced_after_it(
    world: World, server: Between, client: ElectrumClient
) -> None:
    """The answer and the notice of the next block arrive together, in this order."""
    asked = {"height": 120, "hex": world.chain.header(120).hex()}

    def together(method: str, message: dict[str, Any]) -> dict[str, Any] | bytes | None:
        if method != "blockchain.headers.subscribe":
            return message
        if "id" not in message:
            return None  # the notice, which goes with the answer
        notice = {"method": method, "params": [{"height": 121, "hex": world.chain.header(121).hex()}]}
        return b"".join(json.dumps(each).encode() + b"\n" for each in ({**message, "result": asked}, notice))

    server.edit = together
    world.mine()
    assert (await client.newest_tip()).height in (120, 121)
    await until(lambda: client.tip.height == 121)


async def test_many_blocks_while_nobody_looked(world: World, client: ElectrumClient) -> None:
    world.chain.mine_many(300)
    await until(lambda: client.tip.height == 420)
    assert client.headers.hash(250) == world.chain.block_hash(250)


async def test_a_history_is_proven(world: World, client: ElectrumClient) -> None:
    transaction = give(world, 1, 5000, 6000)
    assert await client.history(OTHER) == []
    txid = world.send(transaction)
    assert await client.history(OTHER) == [(txid, 0)]
    world.mine()
    second = world.send(give(world, 2, 7000))
    assert await client.history(OTHER) == [(txid, 121), (second, 0)]
    assert await client.transaction(txid) == transaction.serialize()
    assert await client.unspent(OTHER) == {(txid, 0): 5000, (txid, 1): 6000, (second, 0): 7000}
    assert len(await client.history(HOME)) == 122


async def test_older_headers_are_fetched_for_a_proof(
    world: World, server: Between, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chainsync, "WINDOW", 10)
    monkeypatch.setattr(chainsync, "CHUNK", 16)
    transaction = give(world, 1, 5000)
    txid = world.send(transaction)
    world.mine()
    world.chain.mine_many(60)
    client = await dial(nursery, server)
    assert client.headers.base == 171
    assert await client.history(OTHER) == [(txid, 121)]
    assert client.headers.base == 107
    assert client.headers.hash(121) == world.chain.block_hash(121)


async def test_a_transaction_is_asked_for_once(world: World, server: Between, client: ElectrumClient) -> None:
    txid = world.coin(3).txid
    assert await client.transaction(txid) == await client.transaction(txid)
    assert server.asked.count("blockchain.transaction.get") == 1
    with pytest.raises(ServerError, match=r"refused blockchain\.transaction\.get"):
        await client.transaction(bytes(32))


async def test_a_broadcast_is_done_when_the_server_has_it(world: World, client: ElectrumClient) -> None:
    transaction = pay(world.coin(1), COIN - 1000)
    raw, txid = transaction.serialize(), transaction.GetTxid()
    assert await client.broadcast(raw) == txid
    assert world.pool() == {txid}
    assert await client.broadcast(raw) == txid
    world.mine()
    assert await client.broadcast(raw) == txid
    with pytest.raises(BroadcastRejected) as rejected:
        await client.broadcast(pay(world.coin(2), COIN + 1).serialize())
    assert "bad-txns-in-belowout" in rejected.value.reason


async def test_fees_are_whole_satoshis_rounded_up(server: Between, client: ElectrumClient) -> None:
    assert await client.estimate_fee(6) == 2
    for said, meant in ((-1, None), (0.00001001, 2), (0.00002, 2), (0, 1), (1e-8, 1), (1, 100_000)):
        server.edit = lambda _, message, said=said: message | {"result": said}  # type: ignore[misc]
        assert await client.estimate_fee(6) == meant


async def test_a_script_is_watched_until_the_last_subscriber_leaves(
    world: World, server: Between, client: ElectrumClient
) -> None:
    first: list[str | None] = []
    second: list[str | None] = []
    name = script_hash(OTHER)
    assert await client.subscribe(name, first.append) is None
    assert await client.subscribe(name, second.append) is None
    world.send(give(world, 1, 5000))
    await until(lambda: second)
    assert first == second
    assert isinstance(first[0], str)
    client.unsubscribe(name, first.append)
    assert "blockchain.scripthash.unsubscribe" not in server.asked
    world.mine()
    await until(lambda: len(second) == 2)
    assert len(first) == 1
    client.unsubscribe(name, second.append)
    await until(lambda: "blockchain.scripthash.unsubscribe" in server.asked)


async def test_many_questions_at_once(world: World, client: ElectrumClient) -> None:
    answers: dict[int, object] = {}

    async def ask(number: int) -> None:
        answers[number] = await client.request("blockchain.block.header", number % 121)

    async with trio.open_nursery() as questions:
        for number in range(500):
            questions.start_soon(ask, number)
    assert all(answers[number] == world.chain.header(number % 121).hex() for number in range(500))


# Servers that fail


async def test_the_next_server_is_asked(world: World, server: Between, nursery: trio.Nursery) -> None:
    wrong, deaf = await serve(world, nursery), await serve(world, nursery)
    wrong.edit = _another_chain
    deaf.edit = lambda *_: b"HTTP/1.1 400 Bad Request\r\n"
    closed = "127.0.0.1:1"
    client = await dial(nursery, closed, wrong, deaf, server)
    assert client.server == server.address
    with pytest.raises(WorldError) as failed:
        await run_electrum([closed, wrong.address, deaf.address], REGTEST, clock=CLOCK)
    assert failed.value.code == "no_electrum_server"
    for words in (
        f"electrum server {closed}: ",
        f"electrum server {wrong.address} is on the chain with the first block '{'00' * 32}', this node on regtest",
        f"electrum server {deaf.address} sent a line that is not JSON",
    ):
        assert words in failed.value.sentence


async def test_a_server_that_failed_is_not_the_next_ones_first(
    world: World, server: Between, nursery: trio.Nursery
) -> None:
    other = await serve(world, nursery)
    servers = Servers([server.address, other.address])
    for expected in (server, other, server):
        async with trio.open_nursery() as life:
            client: ElectrumClient = await life.start(partial(run_electrum, servers, REGTEST, clock=CLOCK))
            assert client.server == expected.address
            life.cancel_scope.cancel()


async def test_a_lost_connection_ends_everything_that_waits(server: Between, client: ElectrumClient) -> None:
    errors: list[ServerLost] = []
    server.edit = lambda method, message: None if method == "server.ping" else message

    async def expect(work: Callable[[], Any]) -> None:
        with pytest.raises(ServerLost) as lost:
            await work()
        errors.append(lost.value)

    async def later_tips() -> None:
        async for _ in client.tips():
            pass

    async with trio.open_nursery() as waiting:
        waiting.start_soon(expect, partial(client.request, "server.ping"))
        waiting.start_soon(expect, later_tips)
        await until(lambda: "server.ping" in server.asked)
        server.stop()
    await expect(partial(client.history, HOME))
    assert [str(error) for error in errors] == [
        f"electrum server {server.address} closed the connection [server_lost]"
    ] * 3


class Scripted:
    """A server at the other end of a stream in memory, so that time may jump; silent when told so."""

    def __init__(self, height: int) -> None:
        self.ours, self._theirs = trio.testing.memory_stream_pair()
        self.silent = False
        self.asked: list[str] = []
        self._headers = run(145)
        self._height = height

    async def run(self) -> None:
        buffer = b""
        while data := await self._theirs.receive_some():
            *lines, buffer = (buffer + data).split(b"\n")
            for question in map(json.loads, lines):
                self.asked.append(question["method"])
                if not self.silent:
                    answer = {"id": question["id"], "result": self._answer(question["method"])}
                    await self._theirs.send_all(json.dumps(answer).encode() + b"\n")

    def _answer(self, method: str) -> object:
        match method:
            case "server.features":
                return {"genesis_hash": REGTEST.genesis[::-1].hex()}
            case "blockchain.headers.subscribe":
                return {"height": self._height, "hex": self._headers[-80:].hex()}
            case "blockchain.block.headers":
                return {"hex": self._headers.hex()}
        return None


@pytest.mark.parametrize(("silent", "after", "words"), [(True, 30, "did not greet"), (False, 90, "server.ping")])
async def test_a_silent_server_is_left(
    autojump_clock: trio.testing.MockClock, silent: bool, after: int, words: str
) -> None:
    """One that never speaks after 30 s; later there is a ping after 60 s and the end after 30 s without its answer."""
    server = Scripted(1000)
    server.silent = silent
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        client = ElectrumClient("silent", server.ours, REGTEST, clock=CLOCK, ended=nursery.cancel_scope.cancel)
        nursery.start_soon(server.run)
        nursery.start_soon(client.run, lambda _: setattr(server, "silent", True))
    assert trio.current_time() - began == pytest.approx(after)
    assert words in client.lost().sentence


async def test_a_question_without_an_answer_ends_alone(autojump_clock: trio.testing.MockClock) -> None:
    server = Scripted(1000)
    async with trio.open_nursery() as nursery:
        client = ElectrumClient("slow", server.ours, REGTEST, clock=CLOCK, ended=nursery.cancel_scope.cancel)
        nursery.start_soon(server.run)
        nursery.start_soon(client.run, lambda _: None)
        await until(lambda: client.tip.height == 1000)
        server.silent = True
        with pytest.raises(WorldError, match=r"did not answer server\.banner in 30 seconds"):
            await client.request("server.banner")
        server.silent = False
        assert await client.request("server.banner") is None
        await trio.sleep(1000)
        assert server.asked.count("server.ping") == 17
        nursery.cancel_scope.cancel()


async def test_an_answer_that_comes_too_late_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    talk = Session("late", ours, notified=lambda *_: None, heard=lambda: None, ended=lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.run)
        with pytest.raises(WorldError, match="did not answer first"):
            await talk.request("first")

        async def answer_both() -> None:
            while b"second" not in await theirs.receive_some():
                pass
            await theirs.send_all(b'{"id": 0, "result": "late"}\n{"id": 1, "result": "in time"}\n')

        nursery.start_soon(answer_both)
        assert await talk.request("second") == "in time"
        nursery.cancel_scope.cancel()
    with pytest.raises(ServerLost, match="this node ended the connection"):
        await talk.request("third")


# Servers that lie


def _another_chain(method: str, message: dict[str, Any]) -> dict[str, Any]:
    return message | {"result": {"genesis_hash": "00" * 32}} if method == "server.features" else message


def _result(of: str, change: Callable[[Any], Any]) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    def edit(method: str, message: dict[str, Any]) -> dict[str, Any]:
        return message | {"result": change(message.get("result"))} if method == of else message

    return edit


CONFIRMED = "blockchain.transaction.get_merkle"
HISTORY = "blockchain.scripthash.get_history"
HEX = pay(OutPoint(bytes(32), 7), 77).serialize().hex()
SIXTY_FOUR = CTransaction([CTxIn()], [CTxOut(1, CScript(b"\x51\x02\x4e\x73"))])
"""As long as two hashes, and so a possible node of a Merkle tree."""


@pytest.mark.parametrize(
    "lie",
    [
        (HISTORY, lambda _: "none", "sent a malformed history"),
        (HISTORY, lambda _: [{"tx_hash": "00", "height": 1}], "sent a malformed transaction id"),
        (HISTORY, lambda _: [{"tx_hash": "00" * 32}], "sent a malformed history"),
        (HISTORY, lambda _: [{"tx_hash": "00" * 32, "height": 120}], "does not prove the history"),
        (HISTORY, lambda entries: [one | {"height": one["height"] - 1} for one in entries], "does not prove"),
        (HISTORY, lambda entries: [one | {"height": 500} for one in entries], "does not prove the history"),
        (CONFIRMED, lambda proof: proof | {"merkle": proof["merkle"][::-1]}, "does not prove the history"),
        (CONFIRMED, lambda proof: proof | {"pos": 2}, "does not prove the history"),
        (CONFIRMED, lambda proof: proof | {"pos": 2 ** len(proof["merkle"])}, "sent a malformed proof"),
        (CONFIRMED, lambda proof: proof | {"merkle": ["00"]}, "sent a malformed proof"),
        ("blockchain.transaction.get", lambda _: HEX, "sent another transaction instead of"),
        ("blockchain.transaction.get", lambda raw: raw + "00", "that is not a transaction"),
        ("blockchain.transaction.get", lambda _: "zz", "sent a malformed transaction"),
        ("blockchain.transaction.get", lambda _: None, "sent a malformed transaction"),
    ],
)
async def test_a_lie_about_a_history_ends_the_connection(
    world: World,
    server: Between,
    client: ElectrumClient,
    lie: tuple[str, Callable[[Any], Any], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method, change, words = lie
    monkeypatch.setattr("node.chain.electrum.ATTEMPTS", 2)
    world.send(give(world, 1, 5000))
    world.send(give(world, 2, 5000, script=HOME))
    world.mine()
    server.edit = _result(method, change)
    with pytest.raises(ServerLost, match=words):
        await client.history(OTHER)
    with pytest.raises(ServerLost, match=words):
        await client.request("server.ping")


async def test_a_transaction_that_may_be_a_node_of_the_merkle_tree_is_refused(
    server: Between, client: ElectrumClient
) -> None:
    raw, txid = SIXTY_FOUR.serialize(), SIXTY_FOUR.GetTxid()
    assert len(raw) == 64
    server.edit = lambda _, message: {"id": message["id"], "result": raw.hex()}
    with pytest.raises(ServerLost, match="sent another transaction"):
        await client.transaction(txid)


@pytest.mark.parametrize(
    ("notice", "words"),
    [
        ({"height": -1, "hex": "00" * 80}, "announced a malformed header"),
        ({"height": 121, "hex": "zz" * 80}, "announced a header that is not hex"),
        ({"height": "121", "hex": "00" * 80}, "announced a malformed header"),
        ({"height": 2**31 - 1, "hex": "00" * 80}, "sent headers that cannot be"),
        (None, "announced a malformed header"),
    ],
)
async def test_a_lie_about_the_tip_ends_the_connection(
    server: Between, client: ElectrumClient, notice: object, words: str
) -> None:
    note = {"method": "blockchain.headers.subscribe", "params": [notice]}
    server.edit = lambda _, message: json.dumps(note).encode() + b"\n" + json.dumps(message).encode() + b"\n"
    with pytest.raises(ServerLost, match=words):
        while True:
            await client.request("server.ping")
            server.edit = lambda _, message: message
            await trio.sleep(0.01)


async def test_a_tip_that_the_server_does_not_show_is_not_believed(
    world: World, server: Between, client: ElectrumClient
) -> None:
    lie = {"method": "blockchain.headers.subscribe", "params": [{"height": 121, "hex": "00" * 80}]}
    server.edit = lambda method, message: b"".join(json.dumps(one).encode() + b"\n" for one in (lie, message))
    await client.request("server.ping")
    server.edit = lambda _, message: message
    assert client.tip.height == 120
    world.mine()
    await until(lambda: client.tip.hash == world.chain.tip)


async def test_headers_without_work_are_not_believed(world: World, server: Between, nursery: trio.Nursery) -> None:
    def no_work(result: dict[str, Any]) -> dict[str, Any]:
        raw = bytearray.fromhex("".join(result["headers"]))
        for nonce in range(256):  # some nonce lacks the work that regtest asks for
            raw[-1] = nonce
            if hashlib.sha256(hashlib.sha256(raw[-80:]).digest()).digest()[31] > 0x7F:
                break
        return result | {"headers": [raw.hex()]}

    server.edit = _result("blockchain.block.headers", no_work)
    with pytest.raises(WorldError, match="lacks its proof of work"):
        await run_electrum([server.address], REGTEST, clock=CLOCK)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{\n", "not JSON"),
        (b"\xff\n", "not JSON"),
        (b"[" * 9_000 + b"\n", "not JSON"),
        (b'{"result": NaN, "id": 1}\n', "not JSON"),
        (b"[]\n", "no answer and no notification"),
        (b'{"result": 1}\n', "no answer and no notification"),
        (b"x" * 20_000, "a line of more than 10000 bytes"),
    ],
)
async def test_garbage_ends_the_connection(
    server: Between, client: ElectrumClient, line: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MAX_REPLY", 10_000)
    server.edit = lambda *_: line
    with pytest.raises(ServerLost, match=words):
        await client.request("server.ping")


async def test_an_error_is_shown_as_one_harmless_line(server: Between, client: ElectrumClient) -> None:
    server.edit = lambda _, message: {"id": message["id"], "error": {"code": 1, "message": "no\x1b[2J\n" + "a" * 9999}}
    with pytest.raises(ServerError) as refused:
        await client.request("server.ping")
    assert refused.value.message == "no�[2J " + "a" * 493


# Addresses and TLS


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:50001", ServerAddress("127.0.0.1", 50001)),
        ("tcp://electrum.example:50001", ServerAddress("electrum.example", 50001)),
        ("ssl://[::1]:50002", ServerAddress("::1", 50002, tls=True)),
        ("ssl://host:1#" + "ab" * 32, ServerAddress("host", 1, tls=True, pin=b"\xab" * 32)),
    ],
)
def test_addresses(text: str, address: ServerAddress) -> None:
    assert ServerAddress.parse(text) == address
    assert ServerAddress.parse(str(address)) == ServerAddress(address.host, address.port, address.tls)


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:0", "host:65536", "::1:50001", "http://h:1", "h:1#" + "ab" * 32, "ssl://h:1#ab"],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(LocalError, match="write host:port, ssl://host:port"):
        Servers([text])
    with pytest.raises(LocalError, match="at least one"):
        Servers([])


def _certificate(path: Path) -> tuple[ssl.SSLContext, bytes]:
    """A context for a server whose certificate it signed itself, and the fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (path / "certificate").write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    (path / "key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path / "certificate", path / "key")
    return context, certificate.fingerprint(hashes.SHA256())


async def test_tls_with_a_pinned_certificate(server: Between, nursery: trio.Nursery, tmp_path: Path) -> None:
    context, fingerprint = _certificate(tmp_path)

    async def pass_on(tcp: trio.SocketStream) -> None:
        try:
            stream = trio.SSLStream(tcp, context, server_side=True, https_compatible=True)
            await server.pass_on(stream)
        except trio.BrokenResourceError:
            pass

    listeners = await nursery.start(trio.serve_tcp, pass_on, 0)
    port = listeners[0].socket.getsockname()[1]
    client = await dial(nursery, f"ssl://127.0.0.1:{port}#{fingerprint.hex()}")
    assert client.tip.height == 120
    with pytest.raises(WorldError, match=f"its certificate's SHA-256 is {fingerprint.hex()}, the configuration asks"):
        await run_electrum([f"ssl://127.0.0.1:{port}#{'00' * 32}"], REGTEST, clock=CLOCK)
    with pytest.raises(WorldError, match=r"TLS failed: .*certificate"):
        await run_electrum([f"ssl://127.0.0.1:{port}"], REGTEST, clock=CLOCK)
    with pytest.raises(WorldError, match="TLS failed"):
        await run_electrum([f"ssl://{server.address}"], REGTEST, clock=CLOCK)


# For the wallet


@pytest.fixture
async def forwarded(client: ElectrumClient, nursery: trio.Nursery) -> int:
    async def live(task_status: trio.TaskStatus[int]) -> None:
        with pytest.raises(ServerLost):
            await Forwarder().run(client, task_status=task_status)

    port: int = await nursery.start(live)
    return port


async def test_bdk_works_through_the_forwarder(world: World, forwarded: int) -> None:
    electrum = await trio.to_thread.run_sync(bdk.ElectrumClient, f"tcp://127.0.0.1:{forwarded}")
    features = await trio.to_thread.run_sync(electrum.server_features)
    assert str(features.genesis_hash) == REGTEST.genesis[::-1].hex()
    assert (await trio.to_thread.run_sync(electrum.block_headers_subscribe)).height == 120
    keys = bdk.DescriptorSecretKey(bdk.NetworkKind.TEST, bdk.Mnemonic(bdk.WordCount.WORDS12), None)
    receive, change = (bdk.Descriptor.new_bip86(keys, kind, bdk.NetworkKind.TEST) for kind in bdk.KeychainKind)
    wallet = bdk.Wallet(receive, change, bdk.Network.REGTEST, bdk.Persister.new_in_memory())
    address = wallet.reveal_next_address(bdk.KeychainKind.EXTERNAL).address
    world.send(give(world, 1, 12_345, script=bytes(address.script_pubkey().to_bytes())))
    world.mine()
    scan = wallet.start_full_scan().build()
    update = await trio.to_thread.run_sync(partial(electrum.full_scan, scan, 5, 5, fetch_prev_txouts=False))
    wallet.apply_update(update)
    assert wallet.balance().confirmed.to_sat() == 12_345
    assert wallet.latest_checkpoint().height == 121
    transaction = bdk.Transaction(pay(world.coin(2), COIN - 1000).serialize())
    txid = await trio.to_thread.run_sync(electrum.transaction_broadcast, transaction)
    assert {str(txid)} == {one[::-1].hex() for one in world.pool()}


class Wallet:
    """What dials the forwarder, line by line."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def ask(self, line: bytes) -> dict[str, Any]:
        await self._stream.send_all(line + b"\n")
        return await self.hear()

    async def hear(self) -> dict[str, Any]:
        with trio.fail_after(5):
            while b"\n" not in self._buffer:
                data = await self._stream.receive_some()
                if not data:
                    raise EOFError
                self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message = json.loads(line)
        assert message.pop("jsonrpc") == "2.0"
        return dict(message)


@pytest.fixture
async def wallet(forwarded: int) -> AsyncIterator[Wallet]:
    async with await trio.open_tcp_stream("127.0.0.1", forwarded) as stream:
        yield Wallet(stream)


def _question(method: str, *params: object) -> bytes:
    return json.dumps({"id": "w1", "method": method, "params": params}).encode()


async def test_subscriptions_through_the_forwarder(world: World, wallet: Wallet) -> None:
    answer = await wallet.ask(_question("blockchain.headers.subscribe"))
    assert answer == {"id": "w1", "result": {"height": 120, "hex": world.chain.header(120).hex()}}
    answer = await wallet.ask(_question("blockchain.scripthash.subscribe", script_hash(OTHER)))
    assert answer == {"id": "w1", "result": None}
    world.send(give(world, 1, 5000))
    note = await wallet.hear()
    assert note["method"] == "blockchain.scripthash.subscribe"
    assert note["params"][0] == script_hash(OTHER)
    for there in (True, False):
        answer = await wallet.ask(_question("blockchain.scripthash.unsubscribe", script_hash(OTHER)))
        assert answer == {"id": "w1", "result": there}
    world.mine()
    note = await wallet.hear()
    assert note == {
        "method": "blockchain.headers.subscribe",
        "params": [{"height": 121, "hex": world.chain.header(121).hex()}],
    }


async def test_the_forwarder_answers_nonsense_and_lives(server: Between, wallet: Wallet) -> None:
    for nonsense in (b"{", b"[]", b"1", b'{"id": 1, "method": "server.ping"}'):
        assert (await wallet.ask(nonsense))["error"]["code"] == -32600
    assert (await wallet.ask(_question("server.peers.subscribe")))["error"]["message"] == "unknown method"
    assert "height" in (await wallet.ask(_question("blockchain.block.header", "x")))["error"]["message"]
    assert (await wallet.ask(_question("server.version", "w", ["1.4", "1.6"])))["result"] == ["cfdnode", "1.4"]
    assert (await wallet.ask(_question("blockchain.estimatefee", 6)))["result"] == 0.00002
    assert server.asked.count("server.version") == 1


async def test_the_forwarder_hangs_up_when_the_server_is_lost(server: Between, wallet: Wallet) -> None:
    server.stop()
    with pytest.raises((EOFError, trio.BrokenResourceError)):
        await wallet.hear()


async def test_the_forwarder_keeps_its_port(server: Between, nursery: trio.Nursery) -> None:
    forwarder = Forwarder()
    ports = []
    for _ in range(2):
        client = await dial(nursery, server)
        async with trio.open_nursery() as life:
            ports.append(await life.start(forwarder.run, client))
            async with await trio.open_tcp_stream("127.0.0.1", ports[-1]) as stream:
                assert (await Wallet(stream).ask(_question("server.ping")))["result"] is None
            life.cancel_scope.cancel()
    assert ports[0] == ports[1]
