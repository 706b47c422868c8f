"""An Electrum server (protocol 1.4 and 1.6, JSON lines over TCP) over the embedded chain and its mempool."""

import json
from collections.abc import Callable, Mapping, Sequence

import trio

from node.regtest.electrum_methods import (
    BAD_REQUEST,
    PACKAGES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    SOFTWARE,
    UNKNOWN_METHOD,
    Json,
    Methods,
    RpcError,
    call,
    hash_of,
)
from node.regtest.mempool import Mempool
from protocols.errors import WorldError

MAX_LINE = 2**21
"""Bytes of a request; the largest transaction is 800 kB of hex."""
MAX_BATCH = 1000
MAX_SUBSCRIPTIONS = 10_000
MAX_CLIENTS = 200
SEND_TIMEOUT = 60.0

_PARSE_ERROR, _INVALID_REQUEST = -32700, -32600


class ElectrumServer:
    """Serves any number of clients; a client's misbehaviour ends its own connection only."""

    def __init__(self, methods: Methods, mempool: Mempool, *, newest: tuple[int, ...] = PROTOCOL_MAX) -> None:
        """`newest` is the newest version of the protocol that it speaks."""
        self.methods = methods
        self.newest = newest
        self.changed = trio.Event()
        """Set at the next change of chain or mempool, and then replaced."""
        self._clients = 0
        mempool.listeners.append(self._on_change)

    async def run(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; the started value is the port. Raises `WorldError` if it cannot be bound."""
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise WorldError("port_in_use", f"cannot listen on {host}:{port}: {error}") from error
        task_status.started(listeners[0].socket.getsockname()[1])
        await self.serve(listeners)

    async def serve(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Serve on these until cancelled."""
        await trio.serve_listeners(self._serve, list(listeners))

    def _on_change(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self._clients >= MAX_CLIENTS:
            return
        self._clients += 1
        try:
            await _Client(self, stream).run()
        finally:
            self._clients -= 1


class _Client:
    """One connection: its requests in order, and notifications of what it subscribed to."""

    def __init__(self, server: ElectrumServer, stream: trio.SocketStream) -> None:
        self._server = server
        self._stream = stream
        # held while an answer is computed and sent, so that answers and notifications never overtake each
        # other
        self._turn = trio.Lock()
        self._tip: Mapping[str, Json] | None = None
        """The last tip told, once the client asked for tips."""
        self._scripts: dict[bytes, str | None] = {}
        """Subscribed script hashes with the last status told."""
        self._methods: dict[str, Callable[..., Json]] = {
            **server.methods.table,
            "server.version": self.version,
            "blockchain.headers.subscribe": self.subscribe_headers,
            "blockchain.scripthash.subscribe": self.subscribe,
            "blockchain.scripthash.unsubscribe": self.unsubscribe,
        }

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._notify)
                await self._read()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # the client is gone, or does not read
        finally:
            await trio.aclose_forcefully(self._stream)

    # Methods that belong to the connection

    def version(self, client_name: object = "", protocol_version: object = "1.4") -> Json:
        wanted = protocol_version if isinstance(protocol_version, list) else [protocol_version] * 2
        if len(wanted) != 2:
            raise RpcError(BAD_REQUEST, f"invalid protocol version: {protocol_version!r}")
        low, high = (_version(value) for value in wanted)
        chosen = min(high, self._server.newest)
        if chosen < max(low, PROTOCOL_MIN):
            raise RpcError(BAD_REQUEST, f"unsupported protocol version: {protocol_version!r}")
        if chosen >= PACKAGES:
            self._methods |= self._server.methods.newer_table
        return [SOFTWARE, ".".join(map(str, chosen))]

    def subscribe_headers(self) -> Json:
        self._tip = self._server.methods.tip()
        return self._tip

    def subscribe(self, scripthash: object) -> Json:
        script = hash_of(scripthash, "scripthash")
        if len(self._scripts) >= MAX_SUBSCRIPTIONS and script not in self._scripts:
            raise RpcError(BAD_REQUEST, f"more than {MAX_SUBSCRIPTIONS} subscriptions")
        self._scripts[script] = self._server.methods.status(script)
        return self._scripts[script]

    def unsubscribe(self, scripthash: object) -> Json:
        script = hash_of(scripthash, "scripthash")
        found = script in self._scripts
        self._scripts.pop(script, None)
        return found

    # In and out

    async def _read(self) -> None:
        buffer = bytearray()
        async for chunk in self._stream:
            buffer += chunk
            *lines, rest = buffer.split(b"\n")
            buffer = bytearray(rest)
            for line in lines:
                if line.strip():
                    async with self._turn:
                        await self._send(self._answer(bytes(line)))
            if len(buffer) > MAX_LINE:
                too_long = RpcError(_INVALID_REQUEST, f"a request has at most {MAX_LINE} bytes")
                async with self._turn:
                    await self._send([_error(None, too_long)])
                return

    async def _notify(self) -> None:
        while True:
            changed = self._server.changed
            async with self._turn:
                await self._send(self._news())
            await changed.wait()

    def _news(self) -> list[Json]:
        methods, news = self._server.methods, list[Json]()
        if self._tip is not None and self._tip != (tip := methods.tip()):
            self._tip = tip
            news.append(_notification("blockchain.headers.subscribe", [tip]))
        for script, told in self._scripts.items():
            status = methods.status(script)
            if status != told:
                self._scripts[script] = status
                news.append(_notification("blockchain.scripthash.subscribe", [script[::-1].hex(), status]))
        return news

    def _answer(self, line: bytes) -> list[Json]:
        """The messages that answer one line: one, or for a batch a list of them in one."""
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return [_error(None, RpcError(_PARSE_ERROR, "invalid JSON"))]
        if not isinstance(request, list):
            return [self._respond(request)]
        if not 0 < len(request) <= MAX_BATCH:
            return [_error(None, RpcError(_INVALID_REQUEST, f"a batch has 1 to {MAX_BATCH} requests"))]
        return [[self._respond(one) for one in request]]

    def _respond(self, request: object) -> Json:
        number: Json = None
        try:
            if not isinstance(request, dict) or not isinstance(request.get("method"), str):
                raise RpcError(_INVALID_REQUEST, "a request is an object with a method")
            if isinstance(request.get("id"), int | str):
                number = request["id"]
            method = request["method"]
            if method not in self._methods:
                raise RpcError(UNKNOWN_METHOD, f'unknown method "{method[:100]}"')
            result = call(self._methods[method], request.get("params", []))
        except RpcError as error:
            return _error(number, error)
        return {"jsonrpc": "2.0", "id": number, "result": result}

    async def _send(self, messages: list[Json]) -> None:
        if messages:
            with trio.fail_after(SEND_TIMEOUT):
                await self._stream.send_all(b"".join(json.dumps(message).encode() + b"\n" for message in messages))


def _version(value: object) -> tuple[int, ...]:
    try:
        if isinstance(value, str) and len(value) < 20:
            return tuple(int(part) for part in value.split("."))
    except ValueError:
        pass
    raise RpcError(BAD_REQUEST, f"invalid protocol version: {value!r}")


def _notification(method: str, parameters: list[Json]) -> Json:
    return {"jsonrpc": "2.0", "method": method, "params": parameters}


def _error(number: Json, error: RpcError) -> Json:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": error.code, "message": error.message}}
