"""A loopback Electrum server for the wallet, in front of the node's one `ElectrumClient`.

BDK's Electrum client is a thing of its own, in a thread, that dials for itself. Pointed here, it shares the node's
connection, and with it the checks, the certificate's fingerprint and the failover, which are built once.
"""

import json
from decimal import Decimal
from functools import partial

import trio

from node.chain.chainsync import Tip, headers_in_one
from node.chain.electrum import AGENT, PROTOCOL, ElectrumClient, Notify
from node.chain.session import ServerError, ServerLost
from node.health import UNREPORTED, Beating, Report
from protocols.errors import WorldError

MAX_REQUEST = 2**20
"""Bytes of one line: a transaction of 400 kB in hex, and to spare."""
IN_FLIGHT = 50
"""Requests of one dialler at a time; it is read no further before one of them is answered."""

_FORWARDED = frozenset(
    {
        "blockchain.block.header",
        "blockchain.estimatefee",
        "blockchain.relayfee",
        "blockchain.scripthash.get_balance",
        "blockchain.scripthash.get_history",
        "blockchain.scripthash.get_mempool",
        "blockchain.scripthash.listunspent",
        "blockchain.transaction.broadcast",
        "blockchain.transaction.get",
        "blockchain.transaction.get_merkle",
        "blockchain.transaction.id_from_pos",
        "mempool.get_fee_histogram",
        "server.features",
    }
)


class Forwarder:
    """Listens on 127.0.0.1 for as long as a connection to a server lasts, on the same port in every life."""

    def __init__(self) -> None:
        self.port = 0
        """Where it listens; chosen by the system in the first life."""

    async def run(
        self,
        client: ElectrumClient,
        *,
        report: Report = UNREPORTED,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Start with the port. Ends, and every dialler with it, with the connection: `ServerLost`."""
        try:
            listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        except OSError as error:
            raise WorldError("forwarder_port", f"cannot listen on 127.0.0.1:{self.port}: {error}") from error
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, partial(_serve, client), listeners)
            task_status.started(self.port)
            try:
                async for _ in Beating(report, client.tips()):
                    pass
            except ServerLost:
                nursery.cancel_scope.cancel()
        raise client.lost()


async def _serve(client: ElectrumClient, stream: trio.SocketStream) -> None:
    async with stream:
        try:
            await _Dialler(client, stream).run()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the dialler hung up, or the server did and the forwarder ends


class _Dialler:
    """One connection of the wallet."""

    def __init__(self, client: ElectrumClient, stream: trio.SocketStream) -> None:
        self._client = client
        self._stream = stream
        self._writing = trio.Lock()
        self._in_flight = trio.Semaphore(IN_FLIGHT)
        self._scripts: dict[str, Notify] = {}
        self._news: dict[str, str | None] = {}
        self._bell = trio.Event()
        self._wants_tips = trio.Event()
        self._told: Tip | None = None

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_tips)
                nursery.start_soon(self._tell_scripts)
                await self._read(nursery)
                nursery.cancel_scope.cancel()
        finally:
            for name, notify in self._scripts.items():
                self._client.unsubscribe(name, notify)

    async def _read(self, nursery: trio.Nursery) -> None:
        buffer, searched = bytearray(), 0
        async for data in self._stream:
            buffer += data
            while (end := buffer.find(b"\n", searched)) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                searched = 0
                await self._in_flight.acquire()
                nursery.start_soon(self._answer, line)
            searched = len(buffer)
            if searched > MAX_REQUEST:
                return

    async def _answer(self, line: bytes) -> None:
        try:
            match _request(line):
                case {"id": int() | str() as number, "method": str(method), "params": list(params)}:
                    await self._send({"id": number, **await self._outcome(method, params)})
                case _:
                    await self._send({"id": None, "error": _error(-32600, "a request has id, method and params")})
        finally:
            self._in_flight.release()

    async def _outcome(self, method: str, params: list[object]) -> dict[str, object]:
        try:
            return {"result": await self._result(method, params)}
        except ServerLost:
            raise
        except ServerError as error:
            return {"error": _error(1, error.message)}
        except WorldError as error:
            return {"error": _error(1, error.sentence)}

    async def _result(self, method: str, params: list[object]) -> object:
        match method, params:
            case "server.version", _:
                return [AGENT, PROTOCOL[0]]
            case "server.ping", _:
                return None
            case "blockchain.headers.subscribe", []:
                self._told = await self._client.newest_tip()  # histories come fresh, so must it
                self._wants_tips.set()
                return _notice(self._told)
            case "blockchain.scripthash.subscribe", [str(name)]:
                return await self._client.subscribe(name, self._notifier(name))
            case "blockchain.scripthash.unsubscribe", [str(name)]:
                notify = self._scripts.pop(name, None)
                if notify is not None:
                    self._client.unsubscribe(name, notify)
                return notify is not None
            case "blockchain.block.headers", _:
                # the wallet was told 1.4, whatever the server speaks
                return headers_in_one(await self._client.request(method, *params))
            case _ if method in _FORWARDED:
                return await self._client.request(method, *params)
            case _:
                raise ServerError(self._client.server, method, "unknown method")

    def _notifier(self, name: str) -> Notify:
        def notify(status: str | None) -> None:
            self._news[name] = status
            self._bell.set()

        before = self._scripts.pop(name, None)
        if before is not None:
            self._client.unsubscribe(name, before)
        self._scripts[name] = notify
        return notify

    async def _tell_tips(self) -> None:
        await self._wants_tips.wait()
        async for tip in self._client.tips():
            if tip != self._told:
                self._told = tip
                await self._send({"method": "blockchain.headers.subscribe", "params": [_notice(tip)]})

    async def _tell_scripts(self) -> None:
        while True:
            await self._bell.wait()
            self._bell = trio.Event()
            news, self._news = self._news, {}
            for name, status in news.items():
                await self._send({"method": "blockchain.scripthash.subscribe", "params": [name, status]})

    async def _send(self, message: dict[str, object]) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}, default=_number).encode() + b"\n"
        async with self._writing:
            await self._stream.send_all(line)


def _request(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _error(code: int, message: str) -> dict[str, object]:
    return {"code": code, "message": message}


def _notice(tip: Tip) -> dict[str, object]:
    return {"height": tip.height, "hex": tip.header.hex()}


def _number(value: object) -> float:
    """The fee rates in the server's answers, which we read as decimals; the wallet reads them as floats anyway."""
    assert isinstance(value, Decimal)
    return float(value)
