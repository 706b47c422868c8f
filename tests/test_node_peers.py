"""Whom a node takes connections from, where, and how it reaches its makers: as configured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from node.network.address import PeerAddress
from node.network.conversation import Host, speak
from node.network.errors import Forbidden
from protocols import identify
from protocols.identify import PeerRole
from tests.endpoints import running as running_endpoint
from tests.sessions import DIALLER
from tests.test_endpoint_dialling import socks5
from tests.test_networks import config_text
from tests.test_node import maker_on, nowhere, taker_on
from tests.worlds import until


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(config_text("signet", nowhere()))
    return path


async def test_a_maker_listens_where_it_is_told_to_and_takes_who_is_on_its_list(config: Path, tmp_path: Path) -> None:
    allow, also = tmp_path / "allow", nowhere()
    allow.write_text("# nobody yet\n")
    flags: dict[str, Any] = {"listen_also": [also], "peers.allow": str(allow)}
    async with maker_on(config, tmp_path / "maker", **flags) as (_, maker):
        await until(lambda: maker.listener.health.up)
        address = maker.address
        other = evolve(address, port=int(also.rpartition(":")[2]))
        async with running_endpoint(secret=DIALLER) as taker:
            for place in (address, other):
                connection = await taker.dial(place)
                with pytest.raises(Forbidden):
                    await speak(connection, identify.PROTOCOL, identify.opener("signet"), Host())
            allow.write_text(f"{taker.identity.public}  # the desk\n")
            with maker.core.endpoint.lent() as endpoint:
                await until(lambda: bool(endpoint.allow))
            for place in (address, other):
                connection = await taker.dial(place)
                said = await speak(connection, identify.PROTOCOL, identify.opener("signet"), Host())
                assert said.role is PeerRole.MAKER
                await connection.aclose()


async def test_a_taker_reaches_a_maker_by_whichever_of_its_addresses_answers_and_through_a_proxy(
    config: Path, tmp_path: Path
) -> None:
    async with maker_on(config, tmp_path / "maker") as (_, maker):
        await until(lambda: maker.listener.health.up)
        peer, port = maker.address.peer, maker.address.port
        async with socks5(port) as proxy:
            dead = PeerAddress.parse(f"{peer}@{nowhere()}")
            await reaches(config, tmp_path / "taker", [dead, maker.address], "")
            assert proxy.asked == []
            named = PeerAddress(peer, "maker.example", 9810)
            await reaches(config, tmp_path / "other", [named], f"127.0.0.1:{proxy.port}")
            assert proxy.asked == ["maker.example:9810"]


async def reaches(config: Path, data: Path, addresses: list[PeerAddress], proxy: str) -> None:
    """A taker's link to the maker, which offers nothing, comes up."""
    flags: dict[str, Any] = {"peers.proxy": proxy} if proxy else {}
    async with taker_on(config, data, *map(str, addresses), **flags) as taker:
        service = taker.core.supervisor[f"maker-{addresses[0].peer.short}"]
        await until(lambda: service.health.up)
        with service.lent() as link:
            assert link.identity.role is PeerRole.MAKER
        with taker.core.endpoint.lent() as endpoint:
            assert [each.peer for each in endpoint.connections] == [addresses[0].peer]
