"""HTTP control of a regtest world: funds, blocks, prices, and a look at the chain.

For people with curl, for demos and tests. It asks for no token: the coins are worthless and it listens on
this machine alone. Ids and hashes are hex as people write them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import trio
from attrs import define
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from node.clock import Clock
from node.errors import NotFound
from node.oracle.server import Behaviour as OracleBehaviour
from node.oracle.server import Mode as OracleMode
from node.oracle.server import Oracle
from node.regtest.consensus import Chain
from node.regtest.electrum_methods import Methods, shown
from node.regtest.exchange import Exchange, Mode
from node.regtest.index import Index
from node.regtest.mempool import MAX_FEE_RATE, Mempool
from node.regtest.prices import Market
from node.regtest.treasury import FEE_RATE, Treasury
from node.wallet.address import to_address, to_script
from node.web.problems import add_problem_handlers
from protocols.contract.funding import OutPoint
from protocols.contract.numbers import MAX_MONEY, PRICE_LIMIT, BadNumber, parse_price
from protocols.contract.symbols import ALLOWED
from protocols.errors import LocalError

MAX_BLOCKS = 1000
MAX_DEPTH = 100
MAX_LATE = 7 * 86_400


@define
class World:
    """The parts of a running world, and what a command can change."""

    chain: Chain
    index: Index
    mempool: Mempool
    treasury: Treasury
    markets: Mapping[str, Market]
    """By symbol."""
    clock: Clock
    exchange: Exchange
    methods: Methods
    oracle: Oracle
    scheduled: bool = True
    """Whether blocks come by themselves."""
    floor: int = 0
    """Satoshis per virtual byte below which no block takes a transaction, with the children that pay for it."""

    @property
    def market(self) -> Market:
        """Bitcoin's."""
        return self.markets["BTCUSD"]

    def mine(self, script: bytes | None = None) -> bytes:
        """A block with what waits in the mempool, at the wall clock's time; returns its hash."""
        return self.chain.mine(self.mempool.block_template(self.floor), script=script or self.treasury.script)

    async def mine_many(self, count: int, script: bytes | None = None) -> None:
        """As many blocks; other tasks run in between."""
        for _ in range(count):
            self.mine(script)
            await trio.lowlevel.checkpoint()

    def set_fees(self, estimate: int, floor: int) -> None:
        """What the Electrum server estimates, and what blocks ask for, in sat/vB. The world's own payments follow."""
        self.methods.fee_rate = estimate
        self.floor = floor
        self.treasury.fee_rate = max(FEE_RATE, floor)

    def reorganise(self, depth: int) -> None:
        """Replace the last blocks by one more, without transactions: theirs return to the mempool."""
        if not 0 < depth <= self.chain.height:
            raise LocalError("bad_depth", f"depth is {depth}, allowed is 1 to {self.chain.height}")
        parent = self.chain.block_hash(self.chain.height - depth)
        for _ in range(depth + 1):
            parent = self.chain.submit(self.chain.build(parent=parent, script=self.treasury.script))


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Fund(_Body):
    address: str
    amount_sat: Annotated[int, Field(gt=0, le=MAX_MONEY)]


class Mine(_Body):
    blocks: Annotated[int, Field(gt=0, le=MAX_BLOCKS)] = 1
    address: str | None = None
    """Whom the coinbases pay; the world itself if none is given."""


class Reorganise(_Body):
    depth: Annotated[int, Field(gt=0, le=MAX_DEPTH)] = 1


class Schedule(_Body):
    on: bool


class Fees(_Body):
    sat_per_vb: Annotated[int, Field(gt=0, le=MAX_FEE_RATE)]
    """What the Electrum server estimates from now on, whatever the target."""
    floor: Annotated[int, Field(ge=0, le=MAX_FEE_RATE)] | None = None
    """What a transaction must pay to get into a block; as before if it is not given."""


class Price(_Body):
    symbol: str = "BTCUSD"
    price: str | None
    """USD, at most two decimals; null gives the path back."""


class Behaviour(_Body):
    mode: Annotated[Mode, Field(strict=False)]


class Attesting(_Body):
    mode: Annotated[OracleMode, Field(strict=False)]
    seconds: Annotated[int, Field(gt=0, le=MAX_LATE)] = 600
    """Of the calendar, that a late oracle waits."""
    price: Annotated[int, Field(ge=0, lt=PRICE_LIMIT)] | None = None
    """Whole USD, that a contradictory oracle attests of every event; half of the true price if it is not given."""


def control_app(world: World) -> FastAPI:
    """The world's HTTP face; every error is an RFC 9457 problem that names the field."""
    app = FastAPI(title="regtest control", docs_url=None, redoc_url=None)
    add_problem_handlers(app)
    script_of: Callable[[str], bytes] = partial(to_script, network="regtest")

    @app.get("/state")
    async def state() -> dict[str, object]:
        return {
            "height": world.chain.height,
            "hash": shown(world.chain.tip),
            "mempool": [shown(txid) for txid in world.mempool.entries],
            "now": world.clock.now(),
            "calendar": world.clock.calendar(),
            "price": world.market.now(),
            "price_overridden": world.market.override is not None,
            "prices": {symbol: market.now() for symbol, market in world.markets.items()},
            "exchange": world.exchange.mode,
            "oracle": world.oracle.behaviour.mode,
            "scheduled": world.scheduled,
            "fees": fee_rates(),
            "treasury": {
                "address": to_address(world.treasury.script, "regtest"),
                "spendable_sat": sum(coin.output.value for coin in world.treasury.coins.values()),
            },
        }

    @app.post("/fund")
    async def fund(body: Fund) -> dict[str, object]:
        return {"txid": shown(world.treasury.pay(script_of(body.address), body.amount_sat))}

    @app.post("/mine")
    async def mine(body: Mine) -> dict[str, object]:
        script = script_of(body.address) if body.address is not None else None
        await world.mine_many(body.blocks, script)
        return tip()

    @app.post("/reorganise")
    async def reorganise(body: Reorganise) -> dict[str, object]:
        world.reorganise(body.depth)
        return tip()

    @app.post("/schedule")
    async def schedule(body: Schedule) -> dict[str, object]:
        world.scheduled = body.on
        return {"scheduled": world.scheduled}

    @app.post("/fees")
    async def fees(body: Fees) -> dict[str, int]:
        world.set_fees(body.sat_per_vb, world.floor if body.floor is None else body.floor)
        return fee_rates()

    @app.post("/price")
    async def price(body: Price) -> dict[str, object]:
        if (market := world.markets.get(body.symbol)) is None:
            raise LocalError("bad_symbol", f"symbol is {body.symbol[:80]!r}, allowed is {ALLOWED}")
        if body.price is not None:
            try:
                parse_price(body.price)
            except BadNumber as error:
                raise LocalError("bad_price", str(error)) from error
        market.override = body.price
        return {"symbol": body.symbol, "price": market.now()}

    @app.post("/exchange")
    async def exchange(body: Behaviour) -> dict[str, object]:
        world.exchange.mode = body.mode
        return {"mode": world.exchange.mode, "clients": world.exchange.clients}

    @app.post("/oracle")
    async def oracle(body: Attesting) -> dict[str, object]:
        world.oracle.behaviour = OracleBehaviour(body.mode, body.seconds, body.price)
        return {"mode": body.mode}

    @app.get("/tx/{txid}")
    async def transaction(txid: str) -> dict[str, object]:
        wanted = _hash(txid)
        if entry := world.mempool.entries.get(wanted):
            return {"hex": entry.raw.hex(), "confirmations": 0, "height": None, "block": None}
        if seen := world.index.transactions.get(wanted):
            return {
                "hex": seen.raw.hex(),
                "confirmations": world.chain.height - seen.height + 1,
                "height": seen.height,
                "block": shown(world.chain.block_hash(seen.height)),
            }
        raise NotFound("no_such_transaction", f"txid {txid}: in no block and not in the mempool")

    @app.get("/spender/{txid}/{vout}")
    async def spender(txid: str, vout: int) -> dict[str, object]:
        found = world.mempool.spender(OutPoint(_hash(txid), vout))
        return {"txid": None if found is None else shown(found)}

    def fee_rates() -> dict[str, int]:
        return {"sat_per_vb": world.methods.fee_rate, "floor": world.floor}

    def tip() -> dict[str, object]:
        return {"height": world.chain.height, "hash": shown(world.chain.tip)}

    return app


def _hash(txid: str) -> bytes:
    try:
        found = bytes.fromhex(txid)[::-1]
    except ValueError:
        found = b""
    if len(found) != 32:
        raise LocalError("bad_txid", f"txid is {txid[:80]!r}, allowed are 64 hex digits")
    return found
