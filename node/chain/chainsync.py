"""Following an Electrum server's chain of headers, one connection long."""

import trio
from attrs import field, frozen

from node.chain.headers import SIZE, BadHeader, Headers, header_hash
from node.chain.latest import Latest
from node.chain.session import Session
from node.networks import Network

WINDOW = 144
"""Headers asked for at the start; older ones follow when a proof needs them."""
CHUNK = 2016
"""Headers in one request, the most that servers give."""


@frozen
class Tip:
    """The best block: height, hash (internal byte order), the 80 bytes of its header."""

    height: int
    hash: bytes
    header: bytes = field(repr=False)


class Moved(Exception):
    """The chain changed between two answers, or the server says so: ask again."""


class ChainSync:
    """Keeps `headers` at the tip that the server announces. `tip` stands at height −1 until `catch_up` was called."""

    def __init__(self, session: Session, network: Network) -> None:
        self.headers = Headers(network)
        self.tip: Latest[Tip] = Latest(Tip(-1, b"", b""))
        self._session = session
        self._announced: Latest[tuple[int, bytes]] = Latest((-1, b""))
        self._joining = trio.Lock()
        self._extending = trio.Lock()

    def announce(self, notice: object) -> None:
        """The server's tip, as it announced it. Never raises: a malformed one ends the session."""
        match notice:
            case {"height": int(height), "hex": str(text)} if 0 <= height < 2**31 and len(text) == 2 * SIZE:
                try:
                    self._announced.set((height, bytes.fromhex(text)))
                except ValueError:
                    self._session.fail("announced a header that is not hex")
            case _:
                self._session.fail("announced a malformed header")

    def end(self) -> None:
        self.tip.fail(self._session.lost)
        self._announced.fail(self._session.lost)

    async def catch_up(self) -> None:
        """Ask for the tip, and have `headers` end there."""
        await self._session.request("blockchain.headers.subscribe", arrived=self.announce)
        self._session.check()
        await self._join()

    async def follow(self) -> None:
        """Follow the tips that are announced."""
        async for _ in self._announced.changes():
            await self._join()

    async def reach(self, height: int) -> None:
        """Have the header at `height`, fetching older ones down to it. Raises `Moved` if it is above the tip."""
        async with self._extending:
            while height < (base := self.headers.base):
                first = max(0, base - CHUNK)
                raw = await self._fetch(first, base - 1)
                if base != self.headers.base or len(raw) != (base - first) * SIZE:
                    raise Moved
                try:
                    self.headers.prepend(raw)
                except BadHeader:
                    raise Moved from None
        if height > self.headers.height:
            raise Moved

    async def _join(self) -> None:
        async with self._joining:
            height, header = self._announced.value  # the newest, which need not be the one that woke us
            try:
                await self._move_to(height, header)
            except BadHeader as error:
                raise self._session.lied(f"sent headers that cannot be: {error}") from error
            height = self.headers.height
            top = self.headers.header(height)
            assert top is not None
            if top != self.tip.value.header:
                self.tip.set(Tip(height, header_hash(top), top))

    async def _move_to(self, height: int, header: bytes) -> None:
        """Let `headers` end at the announced one, looking further and further back for one in common."""
        headers = self.headers
        if headers.height == height and headers.header(height) == header:
            return
        if headers.splice(height, header):
            return
        start, step = min(height, headers.height + 1), 1
        while start > headers.base and height < start + CHUNK:
            if headers.splice(start, await self._fetch(start, height)):
                return
            start, step = start - step, step * 2
        start = max(0, height - WINDOW)
        headers.begin(start, await self._fetch(start, height))

    async def _fetch(self, first: int, last: int) -> bytes:
        """The server's headers of these heights, at most `CHUNK`; fewer if its chain is shorter by now."""
        wanted = min(last - first + 1, CHUNK)
        raw = b""
        while (got := len(raw) // SIZE) < wanted:
            answer = headers_in_one(await self._session.request("blockchain.block.headers", first + got, wanted - got))
            more = self._session.unhex(answer.get("hex") if isinstance(answer, dict) else None, "run of headers")
            if len(more) % SIZE or len(more) // SIZE > wanted - got:
                raise self._session.lied("sent more headers than it was asked for")
            if not more:
                break
            raw += more
        return raw


def headers_in_one(answer: object) -> object:
    """An answer to ``blockchain.block.headers`` as protocol 1.4 has it, ``hex``; from 1.6 on it is a list."""
    headers = answer.get("headers") if isinstance(answer, dict) else None
    if isinstance(answer, dict) and isinstance(headers, list) and all(isinstance(header, str) for header in headers):
        return {**answer, "hex": "".join(headers)}
    return answer
