"""What the API of every node offers: health, the wallet, positions."""

from __future__ import annotations

import platform
import sqlite3
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any, Literal

from attrs import asdict
from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from node.backup.files import on_one_disk
from node.chain.broadcast import Attempt
from node.core import VERSION, Core
from node.errors import Conflict, NotFound
from node.eventstore.sqlite import SCHEMA_VERSION
from node.logs import RECENT, Recent
from node.metrics import Measured
from node.position.book import Positions
from node.position.commands import Command, RefusedCommand, force_close, override_recovery
from node.position.state import Position
from node.price_history import RESOLUTIONS
from node.projections import Projections
from node.values import Symbol
from node.web.backup_api import backup_router
from node.web.feed_api import feed_router
from node.web.health_api import health_router
from node.web.metrics_api import metrics_router
from node.web.oracle_api import oracle_contradicted, oracle_router
from node.web.outlook import next_view, transactions_view, value_view
from node.web.paging import After, Limit, page_of
from node.web.tables import history_table
from node.web.views import archived_view, peer_view, position_view, quote_view
from node.web.wallet_api import wallet_router

OVERRIDE_RISK = (
    "if this node revoked this contract after the backup was made, publishing it lets the peer take everything in it"
)

HexId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="16 bytes in hex")]


SAME_DISK = "the backup lies on the same disk as the data; give [backup] path"


class OverrideIn(BaseModel):
    """The user's word that the risk is understood."""

    model_config = ConfigDict(extra="forbid", strict=True)

    confirm: bool = Field(default=False, description=f"Whether the risk is accepted: {OVERRIDE_RISK}")


VERSIONS = {
    "cfdnode": VERSION,
    "python": platform.python_version(),
    "sqlite": sqlite3.sqlite_version,
    "store_schema": SCHEMA_VERSION,
    **{name: version(name) for name in ("h2", "trio", "bdkpython", "fastapi")},
}

Rollover = Callable[[Position], dict[str, Any]]


def node_routers(
    core: Core, projections: Projections, measured: Measured, rollover: Rollover | None = None
) -> list[APIRouter]:
    """The routes that makers and takers share; `rollover` says of a position when it will be rolled over."""
    config = core.config
    warnings = list(core.warnings)
    if config.network != "regtest" and on_one_disk(config.backup_folder, config.data):
        warnings.append(SAME_DISK)
    return [
        health_router(core.supervisor, core.clock, warnings=warnings),
        oracle_router(core),
        backup_router(core),
        feed_router(core.supervisor, core.clock, projections.board),
        metrics_router(core, projections, measured),
        wallet_router(core, projections),
        _node_router(core, projections, rollover),
    ]


def show(core: Core, rollover: Rollover | None, position: Position, broadcasts: dict[bytes, Attempt]) -> dict[str, Any]:
    """A position as the API shows it."""
    view = position_view(position, broadcasts)
    if rollover is not None and view["rollover"] is not None:
        view["rollover"] |= rollover(position)
    feed = core.feeds.get(position.offer.symbol) if position.offer is not None else None
    return {
        **view,
        "next": next_view(position, core.clock, view["rollover"]),
        "transactions": transactions_view(position),
        "value": value_view(position, feed),
        "oracle_contradicted": oracle_contradicted(core, position),
    }


def show_lasting(
    core: Core, rollover: Rollover | None, position: Position, broadcasts: dict[bytes, Attempt]
) -> dict[str, Any]:
    """The same for the feed, whose topic `values` has what every quote changes."""
    view = show(core, rollover, position, broadcasts)
    del view["value"]
    return view


def _node_router(core: Core, projections: Projections, rollover: Rollover | None) -> APIRouter:
    router = APIRouter(prefix="/api/v1")
    config = core.config

    def shown(position: Position, broadcasts: dict[bytes, Attempt]) -> dict[str, Any]:
        return show(core, rollover, position, broadcasts)

    @router.get("/node")
    async def node() -> dict[str, Any]:
        """Who this node is, what time it takes it for, and by how many seconds others' clocks are ahead of its own."""
        return {
            "version": VERSION,
            "network": config.network,
            "identity": str(core.identity.public),
            "time": core.clock.now(),
            "calendar": core.clock.calendar(),
            "hour": core.clock.hour,
            "role": config.role,
            "explorer": config.explorer_base,
            "symbols": list(config.symbols),
            "versions": VERSIONS,
            "clock": {"offset": core.clocks.offset(), "by": dict(core.clocks.offsets())},
        }

    @router.get("/log")
    async def last_lines(lines: Annotated[int, Query(ge=1, le=Recent.KEPT)] = 200) -> dict[str, Any]:
        """The last lines of the node's log, the newest last: `at`, `level`, `logger`, `event` and what else was said.

        In memory, since the process began, of the level that is configured."""
        return {"lines": RECENT.last(lines)}

    @router.get("/peers")
    async def peers() -> list[dict[str, Any]]:
        """Who is connected now, whichever of us dialled."""
        with core.endpoint.lent() as endpoint:
            return [peer_view(each) for each in endpoint.connections]
        raise AssertionError("a recalled loan raises")

    @router.get("/prices")
    async def prices() -> dict[str, dict[str, Any]]:
        """By symbol the exchange's last good quote, how old it is, and why it may not be used if it may not."""
        return {symbol: quote_view(feed, core.clock.now()) for symbol, feed in core.feeds.items()}

    @router.get("/prices/{symbol}/history")
    async def price_history(
        symbol: Symbol,
        resolution: Annotated[Literal["10s", "1m", "5m", "15m", "1h"], Query(description="of one candle")] = "1m",
    ) -> dict[str, Any]:
        """The middle of bid and ask as candles, the oldest first: at most 500, since the node's start, in memory only.

        There is none for a time without a quote. `time` is when a candle begins, in seconds since 1970."""
        history = projections.history.get(symbol)
        candles = history.candles(resolution) if history is not None else ()
        return {
            "symbol": symbol,
            "resolution": resolution,
            "seconds": RESOLUTIONS[resolution],
            "candles": [asdict(candle) for candle in candles],
        }

    @router.get("/positions")
    async def list_positions(response: Response, limit: Limit = None, after: After = None) -> list[dict[str, Any]]:
        """All of them, the newest last; as they were last known while the record of them is down. With `limit`, so many
        of them, and a `Link` header with the address of the page after, where there is one."""
        broadcasts = dict(core.broadcaster.status())
        known = await projections.positions.read()
        age = known.age(core.clock.now())
        found = sorted(known.value, key=lambda position: (position.placed_at, position.id))
        chosen, following = page_of(found, lambda position: position.id.hex(), limit, after)
        if following is not None:
            response.headers["link"] = f'</api/v1/positions?limit={limit}&after={following}>; rel="next"'
        return [{**shown(position, broadcasts), **age} for position in chosen]

    @router.get("/positions/history")
    async def position_history(
        before: Annotated[int | None, Query(ge=1, description="the `next` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> dict[str, Any]:
        """Those that are over and archived, the newest first, as they were shown last."""
        page = await core.positions.call(Positions.archived, before, limit)
        following = page[-1].id if len(page) == limit else None
        return {"positions": [archived_view(each) for each in page], "next": following}

    @router.get("/positions/history.csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
    async def history_csv() -> Response:
        """The same as a table, all of it, for a spreadsheet: satoshis, USD, times in UTC."""
        views: list[dict[str, Any]] = []
        before: int | None = None
        while page := await core.positions.call(Positions.archived, before, 500):
            views += [archived_view(each) for each in page]
            before = page[-1].id
        headers = {"content-disposition": 'attachment; filename="positions.csv"'}
        return Response(history_table(views), media_type="text/csv; charset=utf-8", headers=headers)

    @router.get("/positions/{order_id}")
    async def one_position(order_id: HexId) -> dict[str, Any]:
        known = await projections.positions.read()
        wanted = bytes.fromhex(order_id)
        position = next((each for each in known.value if each.id == wanted), None)
        if position is None:
            archived = await core.positions.call(Positions.archived_one, wanted)
            if archived is None:
                raise NotFound("no_such_position", f"there is no position {order_id}")
            return archived_view(archived)
        return {**shown(position, dict(core.broadcaster.status())), **known.age(core.clock.now())}

    @router.post("/positions/{order_id}/force-close", status_code=202)
    async def force_close_position(order_id: HexId) -> dict[str, Any]:
        """Publish the commit without the peer: the oracle's price settles, and the refund if it never speaks.

        It is on record when this answers; doing it twice does nothing more.
        """
        return await execute(order_id, force_close("closed by the user alone"))

    @router.post("/positions/{order_id}/override", status_code=202)
    async def override_recovered_position(order_id: HexId, said: OverrideIn | None = None) -> dict[str, Any]:
        """Publish the commit of a recovered position, whose record may be older than what was signed."""
        if said is None or not said.confirm:
            raise Conflict(
                "not_confirmed", f"position {order_id} is recovered: {OVERRIDE_RISK}; ask with confirm true to do it"
            )
        return await execute(order_id, override_recovery("published by the user, though the record may be old"))

    async def execute(order_id: str, command: Command) -> dict[str, Any]:
        with core.positions.lent() as positions:
            if positions.get(bytes.fromhex(order_id)) is None:
                if await positions.archived_one(bytes.fromhex(order_id)) is not None:
                    raise Conflict("archived", f"position {order_id} is over and in the archive")
                raise NotFound("no_such_position", f"there is no position {order_id}")
        try:
            position = await core.positions.call(Positions.execute, bytes.fromhex(order_id), command)
        except RefusedCommand as refusal:
            raise Conflict(refusal.code, refusal.sentence) from refusal
        return shown(position, dict(core.broadcaster.status()))

    return router
