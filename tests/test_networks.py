"""Each network by its parameters, and the wrong one refused by its name wherever it could come in."""

import io
import struct
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from node import cli
from node.chain.headers import PERIOD, BadHeader, Headers, header_hash, next_bits, target
from node.clock import Clock
from node.config import MakerConfig, TakerConfig, load
from node.errors import ConfigError, NeedsUser
from node.network.address import PeerAddress
from node.network.conversation import Host, answering, speak
from node.networks import NETWORKS, chain_named
from node.wallet.address import to_address, to_script
from node.wallet.bdk import BdkWallet
from node.wallet.bip86 import RECEIVE, Account
from node.wallet.seed import Seed
from node.web.node_api import SAME_DISK
from node.web.sockets import bind_api
from protocols import identify
from protocols.contract.terms import REGTEST_TIMELOCKS, Timelocks
from protocols.dialogue import Dialogue
from protocols.errors import LocalError
from protocols.identify import PeerRole
from tests.endpoints import running as running_endpoint
from tests.sessions import DIALLER
from tests.test_headers import EASY, ground, last
from tests.test_node import maker_on, nowhere, taker_on
from tests.worlds import until

ABOUT = "abandon " * 11 + "about"
FIRST_ADDRESSES = {
    "mainnet": "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr",
    "signet": "tb1p8wpt9v4frpf3tkn0srd97pksgsxc5hs52lafxwru9kgeephvs7rqlqt9zj",
    "testnet4": "tb1p8wpt9v4frpf3tkn0srd97pksgsxc5hs52lafxwru9kgeephvs7rqlqt9zj",
    "regtest": "bcrt1p8wpt9v4frpf3tkn0srd97pksgsxc5hs52lafxwru9kgeephvs7rqjeprhg",
}
"""Of those words, by BIP86; the coin types differ, so the keys do."""
OLD_ROOT = "4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b"
ROOT_OF_TESTNET4 = "7aa0a7ae1e223414cb807e40cd57e667b718e42aaf9306db9102fe28912b7b4e"
EVERY = pytest.mark.parametrize("name", NETWORKS)


def config_text(network: str, *electrum: str) -> str:
    servers = ", ".join(f'"{server}"' for server in electrum)
    keys = f'announcement_key = "{"dd" * 32}"\nattestation_key = "{"ee" * 32}"'
    return f'network = "{network}"\nelectrum = [{servers}]\n[oracle]\nurl = "http://127.0.0.1:1"\n{keys}\n'


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(network: str, *electrum: str) -> Path:
        path = tmp_path / f"{network}.toml"
        path.write_text(config_text(network, *electrum))
        return path

    return write


# --- parameters -------------------------------------------------------------------------------------------------------


def test_they_are_those_that_peers_name() -> None:
    assert tuple(NETWORKS) == identify.NETWORKS
    assert [network.name for network in NETWORKS.values()] == list(NETWORKS)


@pytest.mark.parametrize(
    ("name", "root", "time", "nonce"),
    [
        ("mainnet", OLD_ROOT, 1231006505, 2083236893),
        ("signet", OLD_ROOT, 1598918400, 52613770),
        ("testnet4", ROOT_OF_TESTNET4, 1714777860, 393743547),
        ("regtest", OLD_ROOT, 1296688602, 2),
    ],
)
def test_the_first_block_of_each_is_accepted_by_it_alone(name: str, root: str, time: int, nonce: int) -> None:
    network = NETWORKS[name]
    block = struct.pack("<i32s32sIII", 1, bytes(32), bytes.fromhex(root)[::-1], time, network.easiest_bits, nonce)
    assert header_hash(block)[::-1].hex() == network.genesis_hex
    assert chain_named(network.genesis_hex) == name
    for other in NETWORKS.values():
        headers = Headers(other)
        if other is network:
            headers.begin(0, block)
            assert headers.height == 0
        else:
            with pytest.raises(BadHeader, match=f"first block is not that of {other.name}"):
                headers.begin(0, block)


@EVERY
def test_the_locks_are_short_on_regtest_only(name: str, written: Any) -> None:
    config = load(TakerConfig, paths=[written(name, "a:1", "b:1")], environ={})
    assert config.timelocks == (REGTEST_TIMELOCKS if name == "regtest" else Timelocks(144, 156, 576))


def test_the_defaults_of_two_networks_or_roles_are_never_in_each_others_way(written: Any) -> None:
    places: set[object] = set()
    for name in NETWORKS:
        paths = [written(name, "a:1", "b:1")]
        maker, taker = load(MakerConfig, paths=paths, environ={}), load(TakerConfig, paths=paths, environ={})
        places |= {maker.data, taker.data, maker.listen, maker.api, taker.api}
        assert maker.data.parts[-2:] == (name, "maker")
    assert len(places) == 5 * len(NETWORKS)
    maker = load(MakerConfig, paths=[written("mainnet", "a:1", "b:1")], environ={}, flags={"api": "127.0.0.1:7"})
    assert (str(maker.listen), str(maker.api)) == ("127.0.0.1:9810", "127.0.0.1:7")


@EVERY
async def test_seed_words_that_are_imported_make_the_networks_wallet(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(ABOUT.upper()))
    assert cli.main(["seed", "import", "--data", str(tmp_path)]) == 0
    seed = Seed.read(tmp_path / "seed")
    wallet = await BdkWallet.open(seed, name, tmp_path / "wallet", nowhere, clock=Clock())
    assert await wallet.new_address() == FIRST_ADDRESSES[name]
    assert to_address(Account(seed.secret, name).script(RECEIVE, 0), name) == FIRST_ADDRESSES[name]


# --- the rules of testnet4's headers (BIP94) --------------------------------------------------------------------------

BIP94 = evolve(NETWORKS["regtest"], retargets=True, bip94=True)
HARD = 0x201FFFFF
"""A quarter of the easiest target."""


def chain(*blocks: tuple[int, int], before: bytes = bytes(32), time: int = 0) -> bytes:
    """Headers by (seconds after the one before, bits)."""
    raw = b""
    for pause, bits in blocks:
        time += pause
        header = ground(before, time, bits)
        raw, before = raw + header, header_hash(header)
    return raw


LATE, SOON = (1201, EASY), (1200, HARD)


def test_a_late_block_is_easy_and_the_next_in_time_is_not() -> None:
    headers = Headers(BIP94)
    headers.begin(PERIOD, chain((0, HARD), SOON, LATE, LATE, SOON, LATE))
    top, at = headers.hash(headers.height), 4 * 1201 + 2 * 1200 - 1201
    assert top is not None
    for block in ((1200, EASY), (1201, HARD), (1200, HARD - 1)):
        with pytest.raises(BadHeader, match="has the target"):
            headers.splice(PERIOD + 6, chain(block, before=top, time=at))
    assert headers.splice(PERIOD + 6, chain(SOON, LATE, SOON, before=top, time=at))


def test_a_run_that_begins_among_late_blocks_learns_the_target_from_the_first_in_time() -> None:
    headers = Headers(BIP94)
    headers.begin(PERIOD + 1, chain(LATE, LATE, SOON, LATE))
    with pytest.raises(BadHeader, match="has the target"):
        headers.splice(PERIOD + 5, chain((1200, HARD - 1), before=last(_raw(headers)), time=3 * 1201 + 1200))
    older = Headers(BIP94)
    older.begin(PERIOD + 1, chain(LATE, LATE))
    assert older.splice(PERIOD + 3, chain((1200, HARD - 1), before=last(_raw(older)), time=2 * 1201))


@pytest.mark.parametrize("network", [NETWORKS["regtest"], evolve(NETWORKS["regtest"], retargets=True)])
def test_elsewhere_a_late_block_is_as_hard_as_any(network: Any) -> None:
    with pytest.raises(BadHeader, match="has the target"):
        Headers(network).begin(PERIOD, chain((0, HARD), LATE))


def test_a_period_follows_the_first_block_of_the_last_one_and_begins_no_earlier_than_it_ended() -> None:
    blocks = [(0, HARD), *[(300, HARD)] * (PERIOD - 2), LATE]  # what the last one is does not count
    raw = chain(*blocks)
    end = sum(pause for pause, _ in blocks)
    wanted = next_bits(HARD, end, target(EASY))
    assert wanted not in (HARD, next_bits(EASY, end, target(EASY)))
    headers = Headers(BIP94)
    headers.begin(PERIOD, raw)
    for bits in (HARD, EASY, next_bits(EASY, end, target(EASY))):
        with pytest.raises(BadHeader, match="has the target"):
            headers.splice(2 * PERIOD, chain((9999, bits), before=last(raw), time=end))
    with pytest.raises(BadHeader, match="begins a period before the last one has ended"):
        headers.splice(2 * PERIOD, chain((-601, wanted), before=last(raw), time=end))
    assert headers.splice(2 * PERIOD, chain((-600, wanted), before=last(raw), time=end))


def _raw(headers: Headers) -> bytes:
    return b"".join(headers.header(height) or b"" for height in range(headers.base, headers.height + 1))


# --- the wrong network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bitcoin", "testnet", "testnet3", "Mainnet", ""])
def test_a_configuration_names_one_of_the_four(name: str, written: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load(MakerConfig, paths=[written(name, "a:1", "b:1")], environ={})
    assert caught.value.sentence.endswith(
        f"network: {name!r} is not a network that this version knows; allowed are mainnet, signet, testnet4 and regtest"
    )


def test_a_configuration_with_another_networks_first_block_names_both(written: Any) -> None:
    with pytest.raises(ConfigError, match="is that of mainnet, and the network is signet"):
        load(
            TakerConfig, paths=[written("signet", "a:1")], environ={"CFDNODE_GENESIS": NETWORKS["mainnet"].genesis_hex}
        )


@pytest.mark.parametrize("servers", [("a:1",), ("a:1", "ssl://A:2"), ("[::1]:1", "ssl://[::1]:2")])
def test_mainnet_asks_for_chain_servers_on_two_hosts(servers: tuple[str, ...], written: Any) -> None:
    path = written("mainnet", *servers)
    with pytest.raises(ConfigError) as caught:
        load(MakerConfig, paths=[path], environ={})
    told = f"{path}: electrum: mainnet asks for 2 independent Electrum servers, on different hosts: "
    assert caught.value.sentence.startswith(told)
    assert load(MakerConfig, paths=[path], environ={}, flags={"network": "signet"}).electrum == servers
    load(MakerConfig, paths=[written("mainnet", *servers, "b:1")], environ={})


@EVERY
def test_an_address_of_another_network_is_named(name: str) -> None:
    for other, address in FIRST_ADDRESSES.items():
        if address == FIRST_ADDRESSES[name]:
            assert to_address(to_script(address, name), name) == address
            continue
        theirs = "signet or testnet4" if other in ("signet", "testnet4") else other
        with pytest.raises(LocalError) as caught:
            to_script(address, name)
        assert caught.value.sentence == (
            f"address {address!r}: it is of {theirs}; a bitcoin address of {name} is allowed"
        )


@pytest.mark.parametrize("owner", NETWORKS)
async def test_a_wallet_database_of_another_network_is_named(owner: str, tmp_path: Path) -> None:
    seed, path = Seed.from_words(ABOUT), tmp_path / "wallet"
    await BdkWallet.open(seed, owner, path, nowhere)
    for name in NETWORKS.keys() - {owner}:
        with pytest.raises(NeedsUser, match="wallet_of_another_network") as caught:
            await BdkWallet.open(seed, name, path, nowhere)
        assert caught.value.sentence == f"{path}: the wallet's database belongs to {owner}, this node to {name}"
        assert owner in caught.value.remedy
    await BdkWallet.open(seed, owner, path, nowhere)


def build(kind: Any, config: Any) -> None:
    with bind_api(config.api) as api_socket:
        kind.build(config, api_socket)


async def test_a_data_directory_stays_with_its_network_and_role(written: Any, tmp_path: Path) -> None:
    from node.taker import Taker

    flags = {"data": str(tmp_path / "data"), "api": "127.0.0.1:0"}
    signet, mainnet = (
        load(TakerConfig, paths=[written(name, "a:1", "b:1")], environ={}, flags=flags)
        for name in ("signet", "mainnet")
    )
    build(Taker, signet)
    before = {path.name: path.read_bytes() for path in signet.data.iterdir()}
    with pytest.raises(LocalError, match="belongs to signet, this node to mainnet"):
        build(Taker, mainnet)
    assert {path.name: path.read_bytes() for path in signet.data.iterdir()} == before
    from node.maker import Maker

    other = {**flags, "listen": "127.0.0.1:0"}
    with pytest.raises(LocalError, match="belongs to taker, this node to maker"):
        build(Maker, load(MakerConfig, paths=[written("signet", "a:1", "b:1")], environ={}, flags=other))
    build(Taker, signet)


async def test_mainnet_says_aloud_that_the_software_is_young(
    written: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    config = written("mainnet", "127.0.0.1:1", "localhost:1")
    async with taker_on(config, tmp_path / "data") as node:
        warning, same_disk = (await node.get("/health"))["warnings"]
        assert same_disk == SAME_DISK
        assert warning == NETWORKS["mainnet"].warning
        assert warning in caplog.text
        await trio.to_thread.run_sync(cli.main, ["health", "--data", str(tmp_path / "data")])
        assert f"{warning}\n{same_disk}\napi " in capsys.readouterr().out
    async with taker_on(written("signet", "127.0.0.1:1"), tmp_path / "other") as node:
        assert (await node.get("/health"))["warnings"] == [SAME_DISK]


async def test_a_maker_on_another_network_is_named(written: Any, tmp_path: Path) -> None:
    async with maker_on(written("testnet4", nowhere()), tmp_path / "maker") as (_, maker):
        await until(lambda: maker.listener.health.up)
        async with taker_on(written("signet", nowhere()), tmp_path / "taker", str(maker.address)) as taker:
            link = f"maker-{maker.address.peer.short}"

            async def refused() -> Any:
                return "the peer is on testnet4, this node on signet" in (await taker.service(link))["reason"]

            await taker.sees(refused)


async def test_a_maker_parts_with_a_taker_on_another_network(written: Any, tmp_path: Path) -> None:
    asked: list[str] = []

    def on(network: str) -> Any:
        def who(_: object) -> tuple[Dialogue[object], Host]:
            asked.append(network)
            return identify.listener(identify.Identity("x", "1", (), network, PeerRole.TAKER)), Host()

        return {identify.PROTOCOL.path: answering(identify.PROTOCOL, who)}

    async with maker_on(written("testnet4", nowhere()), tmp_path / "maker") as (_, maker):
        await until(lambda: maker.listener.health.up and maker.core.supervisor["visitors"].health.up)
        address: PeerAddress = maker.address
        async with running_endpoint(on("signet"), secret=DIALLER) as stranger:
            connection = await stranger.dial(address)
            with trio.fail_after(20):
                await connection.wait_closed()
            assert connection.reason == "the peer closed it (this node is on testnet4)"
        async with running_endpoint(on("testnet4"), secret=DIALLER) as taker, running_endpoint() as observer:
            own, looking = await taker.dial(address), await observer.dial(address)
            await until(lambda: "testnet4" in asked)
            for connection in (own, looking):  # one answers, the other cannot; both may stay
                maker_says = await speak(connection, identify.PROTOCOL, identify.opener("testnet4"), Host())
                assert maker_says.role is PeerRole.MAKER
