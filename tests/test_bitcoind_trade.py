"""A real bitcoind, seen through a real Electrum server: our client asks it, a maker and a taker trade on it."""

import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import field, frozen
from bitcoin.core import CTransaction

from node.chain.electrum import BroadcastRejected, ElectrumClient, run_electrum
from node.clock import Clock
from node.networks import NETWORKS
from node.oracle.server import AttestedPrices, Oracle, OracleKeys, oracle_app
from node.regtest.prices import Market, RandomWalk
from node.web.server import serve
from protocols.contract.funding import OutPoint
from protocols.contract.oracle import DLC
from protocols.contract.sighash import TxOut
from protocols.contract.terms import REGTEST_TIMELOCKS
from protocols.contract.transactions import FINAL, txid, unsigned

from .bitcoind import Bitcoind, running_bitcoind
from .electrumx import running_electrum_server
from .test_node import MONEY, Api, maker_on, nowhere, taker_on
from .wallets import MINERS, spend, with_witnesses
from .worlds import until

pytestmark = pytest.mark.slow

HOUR = 1.0


@frozen
class RealWorld:
    """What `cfdnode regtest` would be, with parts that others wrote: only the oracle is ours."""

    node: Bitcoind
    config: Path
    market: Market
    _coins: Iterator[int] = field(factory=lambda: iter(range(1, 20)))

    def pay(self, *outputs: tuple[bytes, int]) -> None:
        """From the miners' coins, in a block."""
        coin, value = miners_coin(self.node, next(self._coins))
        rest = value - sum(amount for _, amount in outputs) - 5_000
        raw = with_witnesses(spend([coin], *outputs, (MINERS, rest)), [TxOut(value, MINERS)], {})
        self.node.rpc("sendrawtransaction", raw.hex())
        self.node.mine()

    async def confirm(self, txid: str, blocks: int = 1) -> CTransaction:
        """Wait until bitcoind took a transaction, and mine it."""
        await until(lambda: txid in self.node.rpc("getrawmempool"), within=40)
        self.node.mine(blocks)
        return CTransaction.deserialize(bytes.fromhex(self.node.rpc("getrawtransaction", txid)))


def miners_coin(node: Bitcoind, height: int) -> tuple[OutPoint, int]:
    coinbase = node.rpc("getblock", node.rpc("getblockhash", height), 2)["tx"][0]
    return OutPoint(bytes.fromhex(coinbase["txid"])[::-1], 0), int(coinbase["vout"][0]["value"] * 10**8)


@pytest.fixture
def bitcoind(tmp_path: Path) -> Iterator[Bitcoind]:
    folder = tmp_path / "bitcoind"
    folder.mkdir()
    with running_bitcoind(folder) as node:
        node.mine(120, MINERS)
        yield node


@pytest.fixture
def electrum(bitcoind: Bitcoind, tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "electrum"
    folder.mkdir()
    with running_electrum_server(bitcoind, folder) as address:
        yield address


@asynccontextmanager
async def real_world(node: Bitcoind, electrum: str, folder: Path) -> AsyncIterator[RealWorld]:
    anchor = float(int(time.time()))
    clock = Clock(hour=HOUR, anchor=anchor)
    market = Market(RandomWalk(0), clock, since=int(anchor))
    market.override = "50000"
    keys = OracleKeys.load(folder / "oracle.secret")
    oracle = Oracle(
        keys,
        AttestedPrices(folder / "oracle.attested"),
        clock,
        since=int(anchor),
        market=lambda _, time: market.at(time),
    )
    announcement_key, attestation_key = keys.public(DLC)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        config = folder / "world.toml"
        config.write_text(f"""
network = "regtest"
electrum = "{electrum}"
clock = {{hour = {HOUR!r}, anchor = {anchor!r}}}
[oracle]
url = "http://127.0.0.1:{listener.getsockname()[1]}"
announcement_key = "{announcement_key.hex()}"
attestation_key = "{attestation_key.hex()}"
scheme = "{DLC.name}"
""")
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, oracle_app(oracle), [listener])
            nursery.start_soon(oracle.run)
            yield RealWorld(node, config, market)
            nursery.cancel_scope.cancel()


async def test_what_our_client_hands_in(bitcoind: Bitcoind, electrum: str, nursery: trio.Nursery) -> None:
    """Single transactions and packages, new, known, confirmed and refused."""
    coin, value = miners_coin(bitcoind, 1)
    output = TxOut(value, MINERS)
    first = unsigned(3, [(*coin, FINAL)], [output])
    second = unsigned(3, [(txid(first), 0, FINAL)], [TxOut(value - 2_000, MINERS)])
    parent, child = (with_witnesses(tx.serialize(), [output], {}) for tx in (first, second))
    client: ElectrumClient = await nursery.start(
        lambda task_status: run_electrum([electrum], NETWORKS["regtest"], clock=Clock(), task_status=task_status)
    )
    assert client.takes_packages
    with pytest.raises(BroadcastRejected, match="min relay fee not met"):
        await client.broadcast(parent)
    with pytest.raises(BroadcastRejected, match="bad-txns-inputs-missingorspent"):
        await client.broadcast(child)
    for _ in range(2):
        assert await client.broadcast_package([parent, child]) == {}
    assert await client.broadcast(child) == txid(second)
    assert set(bitcoind.rpc("getrawmempool")) == {txid(tx)[::-1].hex() for tx in (first, second)}
    bitcoind.mine()
    await until(lambda: client.tip.height == bitcoind.height)
    assert await client.broadcast(child) == txid(second)
    with pytest.raises(BroadcastRejected, match="bad-txns-inputs-missingorspent"):  # its outputs are spent
        await client.broadcast(parent)
    proven = await client.history(MINERS, prove=[txid(first)])  # not the hundred coinbases
    assert (txid(first), bitcoind.height) in proven
    nursery.cancel_scope.cancel()


PATIENCE = 120
"""Seconds for a wallet to see a balance: such a server answers one question a second, on a busy machine fewer."""


async def test_a_whole_trade(bitcoind: Bitcoind, electrum: str, tmp_path: Path) -> None:
    """From an offer to both payouts on the chain, the contract held to its expiry."""
    async with (
        real_world(bitcoind, electrum, tmp_path) as world,
        maker_on(world.config, tmp_path / "maker", listen=nowhere()) as (maker, maker_node),
    ):
        await until(lambda: maker_node.listener.health.up)
        async with taker_on(world.config, tmp_path / "taker", str(maker_node.address)) as taker:
            await maker.healthy()
            await taker.healthy()
            world.pay((await maker.script(), MONEY), (await taker.script(), MONEY))
            for node in (maker, taker):
                await node.sees(partial(has_about, node, MONEY), within=PATIENCE)

            offer = await maker.done("/offers", side="short", price="50000", opening_fee=1_000, funding_rate="0.001")
            await taker.sees(lambda: taker.get("/offers"))
            order = await taker.done("/orders", offer_id=offer["id"], quantity=1_000, leverage=2)
            order_id = order["order_id"]
            contract = (await taker.comes_to(order_id, "opening"))["contract"]
            await world.confirm(contract["lock_txid"])
            await maker.comes_to(order_id, "open")
            await taker.comes_to(order_id, "open")

            world.market.override = "60000"
            await world.confirm(contract["commit_txid"], REGTEST_TIMELOCKS.settlement)
            settlement = (await taker.comes_to(order_id, "settling"))["settlement"]
            assert (settlement["event"], settlement["price"]) == (contract["event"], 60_000)
            cet = await world.confirm(settlement["cet_txid"], 3)
            taking, making = await taker.comes_to(order_id, "settled"), await maker.comes_to(order_id, "settled")
            payouts = [making["paid"]["payout"], taking["paid"]["payout"]]
            assert [output.nValue for output in cet.vout] == payouts
            assert sum(payouts) == taking["pool"]
            assert payouts[1] > taking["margin"]
            for node, view in ((maker, making), (taker, taking)):
                balance = MONEY - view["margin"] + view["paid"]["payout"]
                await node.sees(partial(has_about, node, balance), within=PATIENCE)


async def has_about(node: Api, amount: int) -> bool:
    """That much, but for what it paid for the lock and prepaid of the later fees."""
    return bool(amount - 5_000 < (await node.get("/wallet"))["confirmed"] <= amount)
