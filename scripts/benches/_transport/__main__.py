"""One end: ``KIND server``, which prints its address, or ``KIND client PORT KEY``, which does what each line says.

A line is a measurement of `work.Client` and a count; the answer is a line of JSON. Both end with their standard input.
"""

import importlib
import json
import os
import sys

import anyio
import anyio.to_thread

from scripts.benches._transport import Address, Kind, work

KINDS = {
    "ours": "ours.Ours",
    "tcp": "plain.Tcp",
    "tls": "plain.Tls",
    "libp2p": "p2p.Libp2p",
    "grpc": "rpc.Grpc",
    "grpc-tls": "rpc.GrpcTls",
}


async def server(kind: Kind) -> None:
    async with kind.running():
        address = await kind.listen(work.serve)
        _say({"port": address.port, "key": address.key})
        await anyio.to_thread.run_sync(sys.stdin.read)
        os._exit(0)  # some do not end in order, and need not


async def client(kind: Kind, address: Address) -> None:
    async with kind.running():
        doing = work.Client(kind, address)
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            name, count = line.split()
            _say(await doing.measure(name, int(count)))
        os._exit(0)


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    module, name = KINDS[sys.argv[1]].split(".")
    kind: Kind = getattr(importlib.import_module(f"scripts.benches._transport.{module}"), name)()
    if sys.argv[2] == "server":
        anyio.run(server, kind, backend=kind.asynchronous)
    else:
        address = Address(int(sys.argv[3]), sys.argv[4])
        anyio.run(client, kind, address, backend=kind.asynchronous)


main()
