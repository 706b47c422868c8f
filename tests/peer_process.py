"""A peer in a process of its own, which tests may stop: ``python -m tests.peer_process SECRET [ADDRESS]``.

It listens, says where in a line, and echoes; or dials the address, opens a stream there, and reads nothing.
"""

import sys

import trio

from node.network.address import Identity, PeerAddress
from node.network.endpoint import Endpoint
from tests.endpoints import ECHO, address_of, echo


async def main(*arguments: str) -> None:
    secret, *address = arguments
    async with Endpoint(Identity(bytes.fromhex(secret)), handlers={ECHO: echo}).running() as endpoint:
        if not address:
            print(await address_of(endpoint), flush=True)
        else:
            stream = await endpoint.open(ECHO, PeerAddress.parse(*address))
            await stream.send_all(b"here")
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
