"""What the other servers of the configuration say of the chain, asked regularly: one server alone can withhold blocks,
and whoever does not see a block does not see the transaction that has to be answered in time.

The heavier valid chain wins: a server that stays behind it is left for the one that shows it. What is wrong with any
server is told, whoever is used.
"""

from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol

import trio

from node.chain.chainsync import Tip
from node.chain.headers import Headers, header_time
from node.chain.servers import ServerAddress, Servers
from node.clock import Clock
from node.health import Report
from node.networks import Network
from protocols.errors import WorldError

EVERY = 60.0
"""Seconds between two looks at all others."""
FIRST_AFTER = 2.0
"""Seconds from the start of a connection to the first look."""
GRACE = 20.0
"""Seconds that the present server has for announcing a block that another one has shown."""
LAG = 3
"""Blocks by which another server has to be behind to be told of."""
STANDS_STILL = 5_526
"""Seconds without a block that chance brings about once in 10 000 blocks: −600 · ln 10⁻⁴."""
REMEDY = (
    "nothing at once: the node asks the next server by itself; see to the servers that are named, or configure others"
)
LONE_REMEDY = "configure a second chain server: the node compares them"

Glance = Callable[[ServerAddress], Awaitable[Headers]]
"""The chain that a server shows now. Raises `WorldError` naming it."""


class Present(Protocol):
    """The connection in use: an `ElectrumClient`."""

    headers: Headers

    @property
    def tip(self) -> Tip: ...

    async def newest_tip(self) -> Tip: ...

    def leave(self, sentence: str) -> None: ...


class Comparison:
    """Goes on for as long as one connection is in use, and ends it when another server shows more work."""

    def __init__(
        self,
        servers: Servers,
        address: ServerAddress,
        present: Present,
        glance: Glance,
        *,
        network: Network,
        clock: Clock,
        report: Report,
    ) -> None:
        self._servers = servers
        self._address = address
        self._present = present
        self._glance = glance
        self._network = network
        self._clock = clock
        self._report = report
        self._told = ""

    async def run(self) -> NoReturn:
        self._servers.troubles.pop(str(self._address), None)
        others = self._servers.others(self._address)
        self._tell()
        await trio.sleep(FIRST_AFTER)
        while True:
            for address in others:
                await self._compare(address)
                self._tell()
            self._tell()
            await trio.sleep(EVERY)

    async def _compare(self, address: ServerAddress) -> None:
        name, troubles = str(address), self._servers.troubles
        try:
            theirs = await self._glance(address)
        except WorldError as error:
            troubles[name] = error.sentence
            return
        try:
            await self._present.newest_tip()
            if self._present.headers.lead(theirs) < 0:
                await trio.sleep(GRACE)
                await self._present.newest_tip()
        except WorldError:
            return  # the present one does not answer: that ends the connection, or comes to nothing
        ours = self._present.headers
        lead = ours.lead(theirs) if theirs.height >= ours.base else ours.height - theirs.height
        if lead >= LAG:
            troubles[name] = f"electrum server {name} is {lead} blocks behind {self._address}"
            return
        troubles.pop(name, None)
        if lead < 0:
            behind = f"electrum server {self._address} is {-lead} blocks behind {name} and was left for it"
            troubles[str(self._address)] = behind
            self._servers.prefer(address)
            self._present.leave(behind)
            await trio.lowlevel.checkpoint()  # that was the end of this, too

    def _tell(self) -> None:
        """What is wrong with the servers now; told only when that changes."""
        trouble, alone = self._servers.trouble(), len(self._servers.addresses) == 1
        told = "; ".join(filter(None, (self._still(), trouble and f"{trouble}; {self._address} is in use")))
        if told == self._told:
            return
        self._told = told
        if told:
            self._report.degraded(told, LONE_REMEDY if alone else REMEDY)
        else:
            self._report.recovered()

    def _still(self) -> str:
        """Whether blocks have stayed out for longer than chance explains; they come at will where there is no
        difficulty to speak of."""
        if not self._network.retargets:
            return ""
        since = header_time(self._present.tip.header)
        if self._clock.now() - since < STANDS_STILL:
            return ""
        hour, minute = divmod(since // 60 % 1440, 60)
        return (
            f"there is no block after height {self._present.tip.height}, of {hour:02}:{minute:02} UTC: by chance that"
            " happens once in 10 000 blocks, or blocks are withheld, or the clock is wrong"
        )
