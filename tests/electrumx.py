"""An Electrum server over a real bitcoind, as ``scripts/fetch-electrum-server`` gets one, for slow tests."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .bitcoind import PATIENCE, Bitcoind, fetched, free_port, running


@contextmanager
def running_electrum_server(node: Bitcoind, folder: Path) -> Iterator[str]:
    """Its ``host:port``, once it knows all blocks; skips the test where there is no server to run."""
    command, port = [str(fetched("fetch-electrum-server"))], free_port()
    environment = os.environ | {
        "COIN": "Bitcoin",
        "NET": "regtest",
        "DB_DIRECTORY": str(folder),
        "DAEMON_URL": f"http://{node.cookie}@127.0.0.1:{node.port}/",
        "SERVICES": f"tcp://127.0.0.1:{port}",
        "PEER_DISCOVERY": "off",
        "ALLOW_ROOT": "1",
        "CACHE_MB": "50",
        # what it does for the public's sake: no limits to what one address may ask
        "COST_SOFT_LIMIT": "0",
        "COST_HARD_LIMIT": "0",
        # milliseconds; unhurried it sees a block after five seconds
        "DAEMON_POLL_INTERVAL_BLOCKS": "100",
        "DAEMON_POLL_INTERVAL_MEMPOOL": "100",
    }
    log = folder / "electrum-server.log"
    with running(command, log, environment) as process:
        deadline = time.monotonic() + PATIENCE
        while not _knows(port, node.height):
            assert process.poll() is None, f"the Electrum server ended: {log.read_text()}"
            assert time.monotonic() < deadline, f"the Electrum server is not up: {log.read_text()}"
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"


def _knows(port: int, height: int) -> bool:
    """Whether it answers, and with a tip of that height."""
    requests: tuple[tuple[str, list[str]], ...] = (
        ("server.version", ["test", "1.4"]),
        ("blockchain.headers.subscribe", []),
    )
    answer = {}
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as server, server.makefile("rwb") as lines:
            for method, params in requests:
                request = {"jsonrpc": "2.0", "id": 0, "method": method, "params": params}
                lines.write(json.dumps(request).encode() + b"\n")
                lines.flush()
                answer = json.loads(lines.readline())
    except (OSError, ValueError):
        return False
    return bool(answer["result"]["height"] == height)
