"""A real bitcoind for slow tests: a regtest node on loopback, started and ended by the test that wants one.

It is what ``scripts/fetch-bitcoind`` can get: Bitcoin Knots, told to keep to Bitcoin Core's relay policy. Where there
is none, the test is skipped with the reason.
"""

import json
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from attrs import field, frozen

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0
"""Seconds that a process may take to be up, or to end."""

POLICY = (
    # Knots relays version 3 without its limits, and tolerates less dust; Core's policy is what contracts count on
    "-corepolicy=1",
    # the relay fee of most of today's nodes, and of our own mempool; Core's newest releases ask for a tenth
    "-minrelaytxfee=0.00001",
    "-incrementalrelayfee=0.00001",
    "-acceptnonstdtxn=0",
)


class RpcError(Exception):
    """bitcoind answered a call with an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


@frozen
class Bitcoind:
    """A running regtest node."""

    port: int
    """Of its RPC, on loopback."""
    folder: Path
    _authorization: str = field(repr=False)

    def rpc(self, method: str, *params: object) -> Any:
        """Call a method; blocks until the answer is there. Raises `RpcError`."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            headers = {"Authorization": self._authorization, "Content-Type": "application/json"}
            connection.request("POST", "/", json.dumps({"id": 0, "method": method, "params": params}), headers)
            answer = json.loads(connection.getresponse().read(), parse_float=Decimal)
        finally:
            connection.close()
        if answer["error"] is not None:
            raise RpcError(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    @property
    def cookie(self) -> str:
        """user:password of this run, as Electrum servers want them."""
        return (self.folder / "regtest" / ".cookie").read_text()

    @property
    def height(self) -> int:
        return int(self.rpc("getblockcount"))

    def mine(self, blocks: int = 1, script: bytes = b"\x51") -> None:
        """Blocks of what is in the mempool, their coinbases to a script."""
        self.rpc("generatetodescriptor", blocks, f"raw({script.hex()})")


def fetched(script: str) -> Path:
    """What a script of that name put into the cache to be run; skips the test where it cannot be had."""
    try:
        done = subprocess.run([ROOT / "scripts" / script], capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"scripts/{script} took longer than 10 minutes")
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@contextmanager
def running_bitcoind(folder: Path, *options: str) -> Iterator[Bitcoind]:
    """A regtest node in an empty folder; options come after those that all have."""
    binary, port = fetched("fetch-bitcoind"), free_port()
    command = [
        str(binary),
        "-regtest",
        f"-datadir={folder}",
        "-server",
        "-disablewallet",
        "-txindex",
        # nobody to talk to
        "-listen=0",
        "-connect=0",
        f"-rpcport={port}",
        "-rpcbind=127.0.0.1",
        "-rpcallowip=127.0.0.1",
        "-printtoconsole=0",
        *POLICY,
        *options,
    ]
    with running(command, folder / "bitcoind.log") as process:
        cookie = folder / "regtest" / ".cookie"

        def up() -> Bitcoind | None:
            if not cookie.exists():
                return None
            node = Bitcoind(port, folder, "Basic " + b64encode(cookie.read_bytes()).decode())
            try:
                node.rpc("getblockcount")
            except (OSError, HTTPException, RpcError):
                return None  # it is still loading
            return node

        deadline = time.monotonic() + PATIENCE
        while (node := up()) is None:
            said = (folder / "bitcoind.log").read_text()
            assert process.poll() is None, f"bitcoind ended with status {process.returncode}: {said}"
            assert time.monotonic() < deadline, f"bitcoind is not up after {PATIENCE:.0f} s: {said}"
            time.sleep(0.02)
        yield node


@contextmanager
def running(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is asked to end at the end of the block, and killed if it does not."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
