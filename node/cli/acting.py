"""The commands that have a running node do something. What moves money is shown first, and waits for a yes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from node.cli import output
from node.cli.client import (
    REPAIRED_WITHIN,
    Client,
    OutcomeUnknown,
    key_or_new,
    node_at,
    order_id_in,
)
from node.cli.flags import Ca, Json, Key, NodeApi, NodeData, OrderId, Text, TokenFile, Yes
from protocols.errors import LocalError, WorldError

LOOK_EVERY = 0.5
"""Seconds between looks at what is waited for."""

Wait = Annotated[bool, typer.Option("--wait", help="Follow it until it came about or came to nothing.")]


def service(
    name: Annotated[str, typer.Argument(help="The service, as `cfdnode health` names it.")],
    action: Annotated[str, typer.Argument(help="start, stop, restart, or a repair that it offers now.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Accept the consequence of a repair.")] = False,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Start, stop, restart or repair a service."""
    from node.health import ServiceHealth, line

    for word in (name, action):
        if re.fullmatch(r"[a-z0-9-]{1,60}", word) is None:
            raise LocalError("bad_name", f"service: {word[:80]!r} is no name of a service, action or repair")
    node = node_at("service", data, api, token_file, ca)
    if action in ("start", "stop", "restart"):
        answer = node.post(f"services/{name}/{action}")
    else:
        answer = node.post(f"services/{name}/repairs/{action}", {"confirm": yes}, within=REPAIRED_WITHIN)
    if as_json:
        output.as_json(answer)
    else:
        typer.echo(line(ServiceHealth.from_json(answer), time.time()))


# --- positions --------------------------------------------------------------------------------------------------------


def order(
    *,
    symbol: Annotated[str, typer.Option(help="BTCUSD or ETHUSD.")] = "BTCUSD",
    side: Annotated[str, typer.Option(help="long or short: yours.")],
    quantity: Annotated[int, typer.Option(help="Contracts.")],
    leverage: Annotated[int, typer.Option(help="One of the offer's choices.")],
    limit: Annotated[
        Text, typer.Option(help="USD, the worst price that is good enough; else the best offer's.")
    ] = None,
    maker: Annotated[Text, typer.Option(help="Whose offer, 64 hex digits; else the best one.")] = None,
    wait: Wait = False,
    yes: Yes = False,
    key: Key = None,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Open a position. What it comes to is shown before you agree; no price worse than the one shown is taken."""
    node = node_at("order", data, api, token_file, ca)
    repeat = key_or_new(key)
    if limit is None:
        best = _best(node, symbol, side, maker)
        limit, maker = best["price"], best["maker"]
    said: dict[str, object] = {"symbol": symbol, "side": side, "quantity": quantity, "leverage": leverage}
    said |= {"limit": limit, "maker": maker}
    if not yes:
        ticket = node.post("orders/preview", said)
        output.facts(_ticket(ticket, limit), err=as_json)
        if ticket["problem"] is not None:
            raise LocalError(ticket["problem"]["code"], ticket["problem"]["sentence"])
    output.agree("Place this order?", yes=yes)
    same = f"--key {repeat} --limit {limit}" + (f" --maker {maker}" if maker is not None else "")
    placed = node.post("orders", said, key=repeat, same=same)
    if not (wait and as_json):
        _told(placed, "is placed", as_json)
    if wait:
        _wait_for(node, placed["order_id"], _opened, as_json)


def _best(node: Client, symbol: str, side: str, maker: str | None) -> Any:
    """The offer that is best for this side now."""
    found = [
        offer
        for offer in node.get("offers")
        if offer["symbol"] == symbol
        and offer["taker_side"] == side
        and not offer["stale"]
        and maker in (None, offer["maker"])
    ]
    if not found:
        raise LocalError("no_offer", f"order: no offer stands in which you would be {side} {symbol}")
    from fractions import Fraction

    return (min if side == "long" else max)(found, key=lambda offer: Fraction(offer["price"]))


def _ticket(ticket: Mapping[str, Any], limit: str) -> list[tuple[str, object]]:
    fees, funding = ticket["fees"], ticket["funding"]
    return [
        ("you", f"{ticket['side']} {ticket['symbol']}, {output.cell(ticket['quantity'])} contracts"),
        ("price, USD", ticket["price"]),
        ("worst price, USD", limit),
        ("leverage", ticket["leverage"]),
        ("your margin, sat", ticket["margin"]),
        ("opening fee, sat", ticket["opening_fee"]),
        (f"funding per {funding['hours']} h, sat", funding["per_day"]),
        ("fees on the chain, sat", -fees["total"]),
        ("locked in all, sat", ticket["total"]),
        ("liquidation price, USD", ticket["liquidation_price"]),
        ("break-even, USD", ticket["break_even"]),
        ("… after fees, USD", ticket["break_even_after_fees"]),
    ]


def close(
    order_id: OrderId,
    *,
    limit: Annotated[Text, typer.Option(help="USD, the worst price that is good enough.", show_default=False)] = None,
    wait: Wait = False,
    yes: Yes = False,
    key: Key = None,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Close a position together with its maker. The price is the present one; what it brings is shown first."""
    path = f"positions/{order_id_in(order_id)}"
    node = node_at("close", data, api, token_file, ca)
    repeat = key_or_new(key)
    if not yes:
        shown = node.get(f"{path}/close")
        if shown["problem"] is not None:
            raise LocalError(shown["problem"]["code"], shown["problem"]["sentence"])
        limit = limit or shown["limit"]
        found: list[tuple[str, object]] = [
            ("price now, USD", shown["price"]),
            ("worst price, USD", limit),
            ("gain or loss, sat", shown["pnl"]),
            ("payout, sat", shown["payout"]),
            ("fees given back, sat", shown["fees_back"]),
            ("paid to you, sat", shown["paid"]),
        ]
        output.facts(found, err=as_json)
    output.agree("Close this position?", yes=yes)
    same = f"--key {repeat}" + (f" --limit {limit}" if limit is not None else "")
    asked = node.post(f"{path}/close", {"limit": limit}, key=repeat, same=same)
    if not (wait and as_json):
        _told(asked, f"the maker is asked to close at {asked['price']}", as_json)
    if wait:
        _wait_for(node, order_id, _closed, as_json)


def force_close(
    order_id: OrderId,
    *,
    yes: Yes = False,
    key: Key = None,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Close a position without the peer. Its commit is published now; the oracle's price settles at expiry."""
    path = f"positions/{order_id_in(order_id)}"
    node = node_at("force-close", data, api, token_file, ca)
    repeat = key_or_new(key)
    output.agree(
        "The commit is published now, with its fees; the price at expiry decides, not the present one. Force close?",
        yes=yes,
    )
    position = node.post(f"{path}/force-close", key=repeat)
    if as_json:
        output.as_json(position)
    else:
        typer.echo(f"{position['state']}: the commit is {position['contract']['commit_txid']}")


def roll_over(
    order_id: OrderId,
    *,
    key: Key = None,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Roll a position over now. The maker's next contract expires later; the taker does so by itself, too."""
    path = f"positions/{order_id_in(order_id)}"
    answer = node_at("rollover", data, api, token_file, ca).post(f"{path}/rollover", key=key_or_new(key))
    if as_json:
        output.as_json(answer)
    else:
        typer.echo("the maker is asked; the position tells what becomes of it")


Verdict = tuple[bool, str]
"""Whether it came about, and in words."""
Judge = Callable[[Mapping[str, Any]], Verdict | None]
"""Of a position's view; None while it goes on."""


def _opened(view: Mapping[str, Any]) -> Verdict | None:
    if view["refusal"] is not None:
        return False, f"refused: {view['refusal']['sentence']}"
    match view["state"]:
        case "ordered" | "setting up" | "opening":
            return None
        case "abandoning" | "rejected" | "setup failed" as state:
            return False, state
        case state:
            return True, state


def _closed(view: Mapping[str, Any]) -> Verdict | None:
    closing = view["closing"] or {}
    if view["paid"] is not None:
        return True, f"paid {output.cell(view['paid']['payout'])} sat by {view['paid']['kind']} {view['paid']['txid']}"
    if closing.get("stage") == "refused" and closing["refusal"]:
        return False, f"refused: {closing['refusal']['sentence']}"
    return None


def _told(answer: Mapping[str, Any], said: str, as_json: bool) -> None:
    """Say what was begun."""
    if as_json:
        output.as_json(answer)
    else:
        typer.echo(f"{answer['order_id']}: {said}")


def _wait_for(node: Client, order_id: str, judge: Judge, as_json: bool) -> None:
    """Say how it came out, once it is known. Exit status 1 if it came to nothing."""
    view, verdict = _follow(node, order_id, judge)
    if as_json:
        output.as_json(view)
    else:
        typer.echo(f"{order_id}: {verdict[1]}")
    if not verdict[0]:
        raise typer.Exit(output.NOT_WELL)


def _follow(node: Client, order_id: str, judge: Judge) -> tuple[Mapping[str, Any], Verdict]:
    """Look until there is a verdict. Raises `OutcomeUnknown` when there is none because the user or the node left."""
    try:
        with output.progress(f"following {order_id}"):
            while True:
                view = node.get(f"positions/{order_id}")
                verdict = judge(view)
                if verdict is not None:
                    return view, verdict
                time.sleep(LOOK_EVERY)
    except (KeyboardInterrupt, WorldError):
        raise OutcomeUnknown("unknown", f"{order_id} goes on; `cfdnode positions {order_id}` tells how") from None


# --- the wallet and offers --------------------------------------------------------------------------------------------


def wallet_address(
    *, data: NodeData = None, api: NodeApi = None, token_file: TokenFile = None, ca: Ca = None, as_json: Json = False
) -> None:
    """Print a new address to pay to."""
    answer = node_at("wallet address", data, api, token_file, ca).post("wallet/addresses")
    if as_json:
        output.as_json(answer)
    else:
        typer.echo(answer["address"])


def wallet_send(
    address: Annotated[str, typer.Argument(help="Whom to pay; of this node's network.")],
    amount: Annotated[str, typer.Argument(help="Satoshis, or `all` that is free.")],
    *,
    fee_rate: Annotated[int | None, typer.Option(help="Satoshis per virtual byte; else as estimated.")] = None,
    yes: Yes = False,
    key: Key = None,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Pay coins to an address. The fee is shown before you agree."""
    if amount != "all" and re.fullmatch(r"[1-9][0-9]{0,15}", amount) is None:
        raise LocalError("bad_amount", f"amount: {amount[:40]!r} is neither whole satoshis nor all")
    node = node_at("wallet send", data, api, token_file, ca)
    repeat = key_or_new(key)
    said: dict[str, object] = {"address": address, "amount_sat": amount if amount == "all" else int(amount)}
    if fee_rate is not None:
        said["fee_rate"] = fee_rate
    if not yes:
        shown = node.post("wallet/send", said | {"preview": True})
        found: list[tuple[str, object]] = [
            ("to", address),
            ("amount, sat", shown["amount"]),
            ("fee, sat", shown["fee"]),
            ("fee rate, sat/vB", shown["fee_rate"]),
        ]
        output.facts(found, err=as_json)
    output.agree("Send it?", yes=yes)
    sent = node.post("wallet/send", said, key=repeat)
    if as_json:
        output.as_json(sent)
    else:
        typer.echo(f"sent by {sent['txid']}")


def offers_set(
    *,
    side: Annotated[str, typer.Option(help="long or short: the maker's, yours.")],
    symbol: Annotated[str, typer.Option(help="BTCUSD or ETHUSD.")] = "BTCUSD",
    price: Annotated[Text, typer.Option(help="USD; or give --spread.")] = None,
    spread: Annotated[Text, typer.Option(help="Part of the quote to stay away from it, such as 0.0025.")] = None,
    min_quantity: Annotated[int | None, typer.Option(help="Contracts.")] = None,
    max_quantity: Annotated[int | None, typer.Option(help="Contracts.")] = None,
    leverages: Annotated[Text, typer.Option(help="What takers may choose, separated by commas.")] = None,
    opening_fee: Annotated[int, typer.Option(help="Satoshis, taker to maker.")] = 0,
    funding_rate: Annotated[str, typer.Option(help="Per 24 h; positive: long pays short.")] = "0",
    key: Key = None,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Set a maker's offer; it replaces that of the same symbol and side. With --spread it follows the market."""
    if (price is None) == (spread is None):
        raise LocalError("bad_flags", "offers set: give either --price or --spread")
    said: dict[str, object] = {
        "symbol": symbol,
        "side": side,
        "price": price,
        "spread": spread,
        "min_quantity": min_quantity,
        "max_quantity": max_quantity,
        "leverages": _numbers(leverages) if leverages is not None else None,
        "opening_fee": opening_fee,
        "funding_rate": funding_rate,
    }
    answer = node_at("offers set", data, api, token_file, ca).post("offers", said, key=key_or_new(key))
    stands = answer if price is not None else answer["offer"]
    if as_json:
        output.as_json(answer)
    elif stands is None:
        typer.echo(f"it follows the market, and no offer stands now: {answer['reason']}")
    else:
        typer.echo(f"{stands['id']}: {stands['maker_side']} {stands['symbol']} at {stands['price']}")


def offers_withdraw(
    offer: Annotated[str, typer.Argument(help="The offer's id, or the symbol of one that follows the market.")],
    side: Annotated[str | None, typer.Argument(help="With a symbol, the maker's side.")] = None,
    *,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Withdraw a maker's offer; it does not come back."""
    node = node_at("offers withdraw", data, api, token_file, ca)
    if side is None and re.fullmatch(r"[0-9a-f]{32}", offer):
        answer = node.delete(f"offers/{offer}")
    elif side in ("long", "short") and re.fullmatch(r"[A-Z]{3,12}", offer):
        answer = node.delete(f"quoted/{offer}/{side}")
    else:
        raise LocalError("bad_offer", "offers withdraw: give an offer's id, 32 hex digits, or SYMBOL and long or short")
    if as_json:
        output.as_json(answer)
    else:
        typer.echo("withdrawn")


def makers_add(
    address: Annotated[str, typer.Argument(help="<64 hex digits>@host:port, as `cfdnode address` prints it.")],
    *,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Keep a link to a maker, from now on and after a restart."""
    answer = node_at("makers add", data, api, token_file, ca).post("makers", {"address": address})
    if as_json:
        output.as_json(answer)
    else:
        typer.echo(f"{answer['identity']}: {answer['state']}")


def makers_remove(
    identity: Annotated[str, typer.Argument(help="The maker's identity, 64 hex digits.")],
    *,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Keep no link to a maker any more; refused while a position with it goes on."""
    if re.fullmatch(r"[0-9a-f]{64}", identity) is None:
        raise LocalError("bad_identity", f"makers remove: {identity[:80]!r} is not 64 hex digits in lower case")
    node_at("makers remove", data, api, token_file, ca).delete(f"makers/{identity}")
    if as_json:
        output.as_json({"removed": identity})
    else:
        typer.echo("removed")


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch(r" *[0-9]{1,4} *", part) for part in parts):
        raise LocalError("bad_leverages", f"--leverages: {text[:80]!r} is not numbers separated by commas")
    return [int(part) for part in parts]
