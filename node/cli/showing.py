"""The commands that ask a running node how things are, and change nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from node.cli import output
from node.cli.client import Client, node_at, order_id_in
from node.cli.flags import Ca, Json, NodeApi, NodeData, TokenFile, flags_behind
from protocols.errors import LocalError

POSITION_HEADS = (
    *("order", "state", "symbol", "side", "quantity", "price", "leverage"),
    *("margin", "liquidation", "gain now", "worth now", "paid", "placed", "refusal"),
)
PAGE = 500


def health(
    *, data: NodeData = None, api: NodeApi = None, token_file: TokenFile = None, ca: Ca = None, as_json: Json = False
) -> None:
    """Print a line per service. Exit status 0: all healthy, 1: not all, 2: the node cannot be reached.

    Under a service that is not healthy stand the causes of its failures, the newest first, and what can be asked of it
    with `cfdnode service`."""
    from node.health import ServiceHealth, all_healthy, details, line

    answer = node_at("health", data, api, token_file, ca).get("health")
    services = [ServiceHealth.from_json(service) for service in answer["services"]]
    if as_json:
        output.as_json(answer)
    else:
        for warning in answer.get("warnings", ()):
            typer.echo(warning)
        width = max(len(service.name) for service in services)
        for service in services:
            typer.echo(line(service, time.time(), width))
            for detail in details(service, time.time()):
                typer.echo(f"    {detail}")
    if not all_healthy(services):
        raise typer.Exit(output.NOT_WELL)


def wallet(
    context: typer.Context,
    *,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """The wallet: its balance in satoshis, unless told otherwise."""
    if context.invoked_subcommand is not None:
        flags_behind(context, data, api, token_file, ca)
        return
    found = node_at("wallet", data, api, token_file, ca).get("wallet")
    if as_json:
        output.as_json(found)
        return
    names = (
        ("confirmed", "confirmed"),
        ("pending", "pending"),
        ("reserved for positions", "reserved"),
        ("locked as margin", "margin_locked"),
        ("kept for fees", "kept_for_fees"),
    )
    output.facts([*((f"{said}, sat", found[name]) for said, name in names), ("coins", found["coins"])])
    _stale(found)


def wallet_coins(
    *, data: NodeData = None, api: NodeApi = None, token_file: TokenFile = None, ca: Ca = None, as_json: Json = False
) -> None:
    """List the wallet's coins."""
    found = node_at("wallet coins", data, api, token_file, ca).get("wallet/coins")
    if as_json:
        output.as_json(found)
        return
    coins = found["coins"]
    heads = ("coin", "sat", "confirmations", "address", "held by")
    rows = [
        (coin["outpoint"], coin["value"], coin["confirmations"], coin["address"], coin["held_by"]) for coin in coins
    ]
    output.table(heads, rows, "no coins; `cfdnode wallet address` gives an address to pay to")


def wallet_transactions(
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = 50,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """List what came into the wallet and went, the newest first. Amounts are satoshis, times UTC."""
    found = _statement(node_at("wallet transactions", data, api, token_file, ca), limit)
    if as_json:
        output.as_json(found)
        return
    heads = ("time", "amount", "fee", "confirmations", "for", "transaction")
    rows = [
        (
            _made(each),
            each["amount"],
            each["fee"],
            each["confirmations"],
            f"{each['of']['kind']} of {each['of']['order_id'][:8]}" if each["of"] else None,
            each["txid"],
        )
        for each in found["transactions"]
    ]
    output.table(heads, rows, "no transactions; `cfdnode wallet address` gives an address to pay to")
    _stale(found)


def _statement(node: Client, limit: int) -> dict[str, Any]:
    """As one page of the API's, however many it takes."""
    found: list[Any] = []
    before = None
    while True:
        asked = {"before": before, "limit": min(PAGE, limit - len(found))}
        page: dict[str, Any] = node.get("wallet/transactions", asked)
        found += page["transactions"]
        before = page["next"]
        if before is None or len(found) >= limit:
            return {**page, "transactions": found}


def _made(transaction: Mapping[str, Any]) -> str:
    if transaction["height"] is None:
        return "unconfirmed"
    return output.moment(transaction["time"]) or f"block {transaction['height']}"


def offers(
    context: typer.Context,
    *,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Offers: a taker's from its makers, a maker's own. `set` and `withdraw` are a maker's."""
    if context.invoked_subcommand is not None:
        flags_behind(context, data, api, token_file, ca)
        return
    found = node_at("offers", data, api, token_file, ca).get("offers")
    if as_json:
        output.as_json(found)
        return
    taking = any("maker" in offer for offer in found)
    heads = ("offer", "symbol", "you", "price", "from", "to", "leverages", "opening fee", "rate/24 h", "maker")
    rows = [
        (
            offer["id"],
            offer["symbol"],
            offer["taker_side"] if taking else offer["maker_side"],
            offer["price"],
            offer["min_quantity"],
            offer["max_quantity"],
            ",".join(map(str, offer["leverages"])),
            offer["opening_fee"],
            offer["funding_rate"],
            f"{offer['maker'][:8]}{' (stale)' if offer['stale'] else ''}" if taking else None,
        )
        for offer in found
    ]
    output.table(heads if taking else heads[:-1], rows if taking else [row[:-1] for row in rows], "no offers stand")


def makers(
    context: typer.Context,
    *,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """A taker's links to makers. `add` and `remove` change them, over restarts."""
    if context.invoked_subcommand is not None:
        flags_behind(context, data, api, token_file, ca)
        return
    found = node_at("makers", data, api, token_file, ca).get("makers")
    if as_json:
        output.as_json(found)
        return
    rows = [
        (
            maker["identity"],
            maker["state"],
            maker.get("address"),
            f"{latency * 1000:.0f} ms" if (latency := maker.get("latency")) is not None else None,
            maker["reason"],
        )
        for maker in found
    ]
    output.table(("maker", "state", "address", "latency", "reason"), rows, "no makers; `cfdnode makers add` adds one")


def positions(
    order_id: Annotated[str | None, typer.Argument(help="One position's order id; all unless given.")] = None,
    *,
    history: Annotated[bool, typer.Option("--history", help="Those that are over and archived.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="For spreadsheets.")] = False,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """List positions, or show one. Amounts are satoshis, quantities contracts, prices USD."""
    if as_json and as_csv:
        raise LocalError("bad_flags", "positions: give --json or --csv, not both")
    if order_id is not None and history:
        raise LocalError(
            "bad_flags", "positions: an order id names one position, archived or not; leave --history away"
        )
    node = node_at("positions", data, api, token_file, ca)
    if order_id is not None:
        found = [node.get(f"positions/{order_id_in(order_id)}")]
    else:
        found = _archived(node) if history else node.get("positions")
    if as_json:
        output.as_json(found if order_id is None else found[0])
    elif as_csv:
        output.as_csv([head.replace(" ", "_") for head in POSITION_HEADS], map(_position_row, found))
    elif order_id is not None:
        output.facts(_position_facts(found[0]))
    else:
        output.table(POSITION_HEADS, map(_position_row, found), "no positions")
        _stale(found[0] if found else {})


def _archived(node: Client) -> list[Any]:
    """All of them, the newest first."""
    found: list[Any] = []
    before = None
    while True:
        page = node.get("positions/history", {"before": before, "limit": PAGE})
        found += page["positions"]
        before = page["next"]
        if before is None:
            return found


def _position_row(view: Mapping[str, Any]) -> Sequence[object]:
    value = view.get("value") or {}  # at the price at which it could be closed now
    return (
        view["order_id"],
        view["state"],
        view["symbol"],
        view["side"],
        view["quantity"],
        view["price"],
        view["taker_leverage"],
        view.get("margin"),
        _text(view.get("liquidation_price")),
        value.get("pnl"),
        value.get("paid"),
        view["paid"]["payout"] if view["paid"] else None,
        output.moment(view["placed_at"]),
        view["refusal"]["code"] if view["refusal"] else None,
    )


def _position_facts(view: Mapping[str, Any]) -> list[tuple[str, object]]:
    contract, rollover = view["contract"] or {}, view["rollover"] or {}
    closing, paid = view["closing"] or {}, view["paid"] or {}
    refusals = (view["refusal"], rollover.get("refusal"), closing.get("refusal"))
    found: list[tuple[str, object]] = [
        *zip(POSITION_HEADS[:-1], _position_row(view)[:-1], strict=True),
        ("what comes next", (view.get("next") or {}).get("sentence")),
        ("pool, sat", view.get("pool")),
        ("fee account, sat", view.get("account")),
        ("counterparty", view["counterparty"]),
        ("expiry", output.moment(contract.get("expiry"))),
        ("contracts so far", rollover.get("contracts")),
        ("lock", contract.get("lock_txid")),
        ("commit", contract.get("commit_txid")),
        ("commit published for", contract.get("commit_reason")),
        ("close", " ".join(map(str, (closing["stage"], "at", closing["price"]))) if closing else None),
        ("ended by", paid.get("kind")),
        ("final", paid.get("final")),
        ("transaction", paid.get("txid")),
        *(("refused", refusal["sentence"]) for refusal in refusals if refusal),
    ]
    return [(name, value) for name, value in found if value is not None]


def _text(price: object) -> str | None:
    return None if price is None else str(price)


def _stale(view: Mapping[str, Any]) -> None:
    """Say on stderr that what was shown is old, and why."""
    if view.get("stale"):
        typer.echo(f"last known, {output.since(view['age'])} ago: {view['reason']}", err=True)
