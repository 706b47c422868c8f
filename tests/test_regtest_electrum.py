"""The Electrum server: answers, notifications, hostile clients, and BDK's own client."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import bdkpython as bdk
import pytest
import trio
from bitcoin.core import CTransaction, Hash

from node.regtest.consensus import GENESIS
from node.regtest.electrum_methods import MAX_HEADERS, Methods, merkle_branch, shown
from node.regtest.electrum_server import MAX_CLIENTS, MAX_LINE, ElectrumServer
from node.regtest.index import script_hash
from protocols.errors import WorldError
from tests.test_regtest_mempool import COIN, HOME, World, out, pay

HASH = sha256(HOME).digest()[::-1].hex()


class Refusal(Exception):
    """An error that the server answered."""


class Client:
    """Line by line, for tests."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = b""
        self.notes: list[tuple[str, Any]] = []

    async def line(self) -> Any:
        while b"\n" not in self.buffer:
            received = await self.stream.receive_some(65536)
            if not received:
                raise EOFError
            self.buffer += received
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    async def call(self, method: str, *params: object) -> Any:
        await self.stream.send_all(json.dumps({"id": 7, "method": method, "params": params}).encode() + b"\n")
        while "id" not in (answer := await self.line()):
            self.notes.append((answer["method"], answer["params"]))
        assert answer["id"] == 7
        if "error" in answer:
            raise Refusal(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    async def note(self) -> tuple[str, Any]:
        if self.notes:
            return self.notes.pop(0)
        answer = await self.line()
        return answer["method"], answer["params"]


Dial = Callable[[], Any]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    world.chain.close()


@pytest.fixture
async def port(world: World, nursery: trio.Nursery) -> int:
    server = ElectrumServer(Methods(world.chain, world.index, world.mempool), world.mempool)
    found: int = await nursery.start(server.run)
    return found


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Client]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        yield Client(stream)


async def test_handshake(port: int) -> None:
    async with connect(port) as client:
        assert await client.call("server.version", "test", "1.4") == ["cfdnode regtest", "1.4"]
        assert (await client.call("server.version", "test", ["1.4", "1.7"]))[1] == "1.6"
        for unspoken in ("1.3", "1.10", ["1.7", "2.0"], "x", ["1.4"], 1.4):
            with pytest.raises(Refusal, match="protocol version"):
                await client.call("server.version", "test", unspoken)
        assert (await client.call("server.features"))["genesis_hash"] == shown(GENESIS)
        assert await client.call("server.ping") is None


async def test_headers(world: World, port: int) -> None:
    async with connect(port) as client:
        assert await client.call("blockchain.block.header", 7) == world.chain.header(7).hex()
        some = await client.call("blockchain.block.headers", 118, 10)
        assert some == {
            "hex": b"".join(map(world.chain.header, (118, 119, 120))).hex(),
            "count": 3,
            "max": MAX_HEADERS,
        }
        assert (await client.call("blockchain.block.headers", 500, 10))["count"] == 0
        async with connect(port) as newer:
            await newer.call("server.version", "test", "1.6")
            listed = [world.chain.header(height).hex() for height in (118, 119, 120)]
            answer = await newer.call("blockchain.block.headers", 118, 10)
            assert answer == {"headers": listed, "count": 3, "max": MAX_HEADERS}
            assert (await newer.call("blockchain.block.headers", 500, 10))["headers"] == []
        proof = await client.call("blockchain.block.header", 7, 12)
        node = world.chain.block_hash(7)
        for depth, sibling in enumerate(bytes.fromhex(text)[::-1] for text in proof["branch"]):
            node = Hash(sibling + node if 7 >> depth & 1 else node + sibling)
        assert proof["root"] == shown(node)
        for wrong in (-1, 121, "1", True, None, 2**40):
            with pytest.raises(Refusal, match="height"):
                await client.call("blockchain.block.header", wrong)


async def test_history_balance_and_coins_of_a_script(world: World, port: int) -> None:
    empty = "00" * 32
    async with connect(port) as client:
        assert len(await client.call("blockchain.scripthash.get_history", HASH)) == 120
        assert await client.call("blockchain.scripthash.get_history", empty) == []
        assert await client.call("blockchain.scripthash.subscribe", empty) is None
        await client.call("blockchain.scripthash.subscribe", HASH)
        confirmed = 120 * COIN
        first = pay(world.coin(1), COIN - 1000)
        second = pay(out(first), COIN - 3000)
        for transaction in (first, second):
            txid = await client.call("blockchain.transaction.broadcast", transaction.serialize().hex())
            assert txid == shown(transaction.GetTxid())
        history = await client.call("blockchain.scripthash.get_history", HASH)
        mempool = [
            {"height": 0, "tx_hash": shown(first.GetTxid()), "fee": 1000},
            {"height": -1, "tx_hash": shown(second.GetTxid()), "fee": 2000},
        ]
        assert history[-2:] == mempool == await client.call("blockchain.scripthash.get_mempool", HASH)
        assert await client.call("blockchain.scripthash.get_balance", HASH) == {
            "confirmed": confirmed,
            "unconfirmed": -3000,
        }
        coins = await client.call("blockchain.scripthash.listunspent", HASH)
        assert len(coins) == 120
        assert coins[-1] == {
            "tx_hash": shown(second.GetTxid()),
            "tx_pos": 0,
            "height": 0,
            "value": COIN - 3000,
        }
        assert await client.call("mempool.get_fee_histogram") == [[20, 96], [10, 96]]
        world.mine()
        after = await client.call("blockchain.scripthash.get_history", HASH)
        assert [entry["height"] for entry in after[-2:]] == [121, 121]
        # the status is the hash over the history as the protocol defines it
        text = "".join(f"{entry['tx_hash']}:{entry['height']}:" for entry in after)
        status = sha256(text.encode()).hexdigest()
        with trio.fail_after(10):
            while await client.note() != ("blockchain.scripthash.subscribe", [HASH, status]):
                pass  # those of the two broadcasts


async def test_transactions(world: World, port: int) -> None:
    first = pay(world.coin(1), COIN - 1000)
    async with connect(port) as client:
        with pytest.raises(Refusal, match="no such mempool or blockchain transaction"):
            await client.call("blockchain.transaction.get", shown(first.GetTxid()))
        world.send(first)
        assert await client.call("blockchain.transaction.get", shown(first.GetTxid())) == first.serialize().hex()
        waiting = await client.call("blockchain.transaction.get", shown(first.GetTxid()), True)
        assert (waiting["txid"], waiting["vsize"]) == (shown(first.GetTxid()), 96)
        assert "confirmations" not in waiting
        world.mine()
        world.chain.mine()
        verbose = await client.call("blockchain.transaction.get", shown(first.GetTxid()), True)
        assert (verbose["confirmations"], verbose["blockhash"]) == (2, shown(world.chain.block_hash(121)))
        assert verbose["vin"][0]["txinwitness"] == ["51"]
        assert verbose["vout"][0] == {"value": 49.99999, "n": 0, "scriptPubKey": {"hex": HOME.hex()}}

        proof = await client.call("blockchain.transaction.get_merkle", shown(first.GetTxid()), 121)
        assert (proof["block_height"], proof["pos"]) == (121, 1)
        (coinbase,) = (bytes.fromhex(text)[::-1] for text in proof["merkle"])
        assert Hash(coinbase + first.GetTxid()) == world.chain.header(121)[36:68]
        assert await client.call("blockchain.transaction.id_from_pos", 121, 0) == shown(coinbase)
        assert (await client.call("blockchain.transaction.id_from_pos", 121, 1, True)) == {
            "tx_hash": shown(first.GetTxid()),
            "merkle": proof["merkle"],
        }
        with pytest.raises(Refusal, match="not in block"):
            await client.call("blockchain.transaction.get_merkle", shown(first.GetTxid()), 120)
        with pytest.raises(Refusal, match="no tx at position 2"):
            await client.call("blockchain.transaction.id_from_pos", 121, 2)
        assert await client.call("blockchain.estimatefee", 6) == 0.00002
        assert await client.call("blockchain.relayfee") == 0.00001


async def test_refused_broadcasts_carry_the_reason(world: World, port: int) -> None:
    async with connect(port) as client:
        with pytest.raises(Refusal, match="rejected by network rules") as refused:
            await client.call("blockchain.transaction.broadcast", pay(world.coin(100), 5000).serialize().hex())
        assert "bad-txns-premature-spend-of-coinbase" in str(refused.value)
        with pytest.raises(Refusal, match="TX decode failed"):
            await client.call("blockchain.transaction.broadcast", "00")
        with pytest.raises(Refusal, match="raw_tx must be a hexadecimal string"):
            await client.call("blockchain.transaction.broadcast", "0g")


async def test_packages(world: World, port: int) -> None:
    parent = pay(world.coin(1), COIN, version=3)
    poor, rich = (pay(out(parent), COIN - fee, version=3) for fee in (10, 1000))
    async with connect(port) as client:
        send = partial(client.call, "blockchain.transaction.broadcast_package")
        with pytest.raises(Refusal, match="unknown method"):
            await send([parent.serialize().hex(), rich.serialize().hex()])
        await client.call("server.version", "test", ["1.4", "1.6"])
        answer = await send([parent.serialize().hex(), poor.serialize().hex()])
        assert answer["success"] is False
        assert answer["errors"][0]["txid"] == shown(parent.GetTxid())
        assert "min relay fee not met" in answer["errors"][0]["error"]
        assert await send([parent.serialize().hex(), rich.serialize().hex()]) == {"success": True}
        assert set(world.mempool.entries) == {parent.GetTxid(), rich.GetTxid()}
        with pytest.raises(Refusal, match="package-too-many-transactions"):
            await send([])
        with pytest.raises(Refusal, match="at most 25"):
            await send(["00"] * 26)


async def test_subscribers_hear_of_tips_and_reorganisations(world: World, port: int) -> None:
    async with connect(port) as client:
        tip = await client.call("blockchain.headers.subscribe")
        assert tip == {"height": 120, "hex": world.chain.header(120).hex()}
        world.chain.mine()
        assert await client.note() == (
            "blockchain.headers.subscribe",
            [{"height": 121, "hex": world.chain.header(121).hex()}],
        )
        other = world.chain.submit(world.chain.build(parent=world.chain.block_hash(120)))
        world.chain.submit(world.chain.build(parent=other))
        _, [told] = await client.note()
        assert told == {"height": 122, "hex": world.chain.header(122).hex()}
        # an unsubscribed script is silent
        assert await client.call("blockchain.scripthash.unsubscribe", HASH) is False
        await client.call("blockchain.scripthash.subscribe", HASH)
        assert await client.call("blockchain.scripthash.unsubscribe", HASH) is True
        world.send(pay(world.coin(1), COIN - 1000))
        world.mine()
        assert (await client.note())[0] == "blockchain.headers.subscribe"


async def test_batches_pipelines_and_named_parameters(port: int) -> None:
    async with connect(port) as client:
        ping = {"id": "a", "method": "server.ping"}
        named = {"id": 2, "method": "blockchain.block.header", "params": {"height": 0}}
        await client.stream.send_all(json.dumps([ping, named]).encode() + b"\n" + json.dumps(ping).encode() + b"\n")
        batch = await client.line()
        assert [answer["id"] for answer in batch] == ["a", 2]
        assert Hash(bytes.fromhex(batch[1]["result"])) == GENESIS
        assert (await client.line())["result"] is None


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", -32700),
        (b"[" * 100_000, -32700),
        (b"\xff\xfe", -32700),
        (b"[]", -32600),
        (b"7", -32600),
        (b'{"id":1}', -32600),
        (b'{"id":1,"method":7}', -32600),
        (b'{"id":1,"method":"server.nothing"}', -32601),
        (b'{"id":1,"method":"server.ping","params":[1]}', -32602),
        (b'{"id":1,"method":"server.ping","params":{"x":1}}', -32602),
        (b'{"id":1,"method":"server.ping","params":7}', -32602),
        (b'{"id":1,"method":"blockchain.scripthash.get_history","params":["00"]}', -32602),
        (b'{"id":1,"method":"blockchain.transaction.get","params":[{}]}', -32602),
        (b'{"id":1,"method":"blockchain.block.headers","params":[0,1e400]}', -32602),
    ],
)
async def test_bad_requests_are_answered_and_the_connection_lives(port: int, line: bytes, code: int) -> None:
    async with connect(port) as client:
        await client.stream.send_all(line + b"\n")
        assert (await client.line())["error"]["code"] == code
        assert await client.call("server.ping") is None


async def test_an_endless_line_ends_its_own_connection_only(port: int) -> None:
    async with connect(port) as client, connect(port) as hostile:
        await hostile.stream.send_all(b"x" * (MAX_LINE + 1))
        assert (await hostile.line())["error"]["code"] == -32600
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await hostile.line()
        assert await client.call("server.ping") is None


async def test_more_clients_than_allowed_are_turned_away(port: int) -> None:
    clients = [Client(await trio.open_tcp_stream("127.0.0.1", port)) for _ in range(MAX_CLIENTS)]
    for client in clients:
        await client.call("server.ping")
    async with connect(port) as late:
        assert await late.stream.receive_some(1) == b""
    for client in clients:
        await client.stream.aclose()


async def test_a_port_in_use_is_named(world: World, port: int) -> None:
    server = ElectrumServer(Methods(world.chain, world.index, world.mempool), world.mempool)
    with pytest.raises(WorldError, match=f"cannot listen on 127.0.0.1:{port}"):
        await server.run(port=port)


@pytest.mark.parametrize("leaves", range(1, 8))
def test_merkle_branches_lead_to_the_root(leaves: int) -> None:
    hashes = [bytes([n]) * 32 for n in range(leaves)]
    for position in range(leaves):
        branch, root = merkle_branch(hashes, position)
        node = hashes[position]
        for depth, sibling in enumerate(branch):
            node = Hash(sibling + node if position >> depth & 1 else node + sibling)
        assert node == root


async def test_bdk_scans_syncs_and_spends_through_it(world: World, port: int, tmp_path: Path) -> None:
    """The wallet library's stock client sees funds arrive, and its transaction confirms."""
    network = bdk.Network.REGTEST
    secret = bdk.DescriptorSecretKey(bdk.NetworkKind.TEST, bdk.Mnemonic.from_entropy(bytes(16)), None)
    wallet = bdk.Wallet(
        bdk.Descriptor.new_bip86(secret, bdk.KeychainKind.EXTERNAL, bdk.NetworkKind.TEST),
        bdk.Descriptor.new_bip86(secret, bdk.KeychainKind.INTERNAL, bdk.NetworkKind.TEST),
        network,
        bdk.Persister.new_in_memory(),
    )
    client = await trio.to_thread.run_sync(bdk.ElectrumClient, f"tcp://127.0.0.1:{port}")

    async def sync() -> int:
        request = wallet.start_full_scan().build()
        update = await trio.to_thread.run_sync(client.full_scan, request, 5, 10, False)
        wallet.apply_update(update)
        confirmed: int = wallet.balance().confirmed.to_sat()
        return confirmed

    assert await sync() == 0
    home = wallet.reveal_next_address(bdk.KeychainKind.EXTERNAL).address
    script = bytes(home.script_pubkey().to_bytes())
    world.send(pay(world.coin(1), 10**8, COIN - 10**8 - 1000, script=script))
    assert await sync() == 0
    assert wallet.balance().total.to_sat() == COIN - 1000
    world.mine()
    assert await sync() == COIN - 1000

    builder = (
        bdk.TxBuilder()
        .add_recipient(bdk.Script(HOME), bdk.Amount.from_sat(10**6))
        .fee_rate(bdk.FeeRate.from_sat_per_vb(2))
    )
    psbt = builder.finish(wallet)
    wallet.sign(psbt, None)
    transaction = psbt.extract_tx()
    txid = await trio.to_thread.run_sync(client.transaction_broadcast, transaction)
    world.mine()
    assert str(txid) == str(transaction.compute_txid())
    assert CTransaction.deserialize(bytes(transaction.serialize())).GetTxid() in world.index.transactions
    assert await sync() == COIN - 1000 - 10**6 - psbt.fee()
    assert len(world.index.history(script_hash(HOME))) > 120
    assert await trio.to_thread.run_sync(client.estimate_fee, 6) == 0.00002
