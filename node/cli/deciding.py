"""The commands by which a maker's operator decides: requests that wait for a word, the policy, funding rates."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from node.cli import output
from node.cli.client import Client, key_or_new, node_at
from node.cli.flags import Ca, Json, Key, NodeApi, NodeData, Text, Texts, TokenFile, Yes, flags_behind
from protocols.errors import LocalError

RequestId = Annotated[str, typer.Argument(help="The request's id, 32 hex digits.")]
SymbolArgument = Annotated[str, typer.Argument(help="BTCUSD or ETHUSD.")]
NO_LIMIT = "none"


# --- requests ---------------------------------------------------------------------------------------------------------


def requests(
    context: typer.Context,
    *,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """What waits for a maker's word, the oldest first. `accept` and `decline` answer it."""
    if context.invoked_subcommand is not None:
        flags_behind(context, data, api, token_file, ca)
        return
    found = node_at("requests", data, api, token_file, ca).get("requests")
    if as_json:
        output.as_json(found)
        return
    heads = ("request", "kind", "symbol", "you", "quantity", "leverage", "price", "rate/24 h", "taker", "left")
    rows = [
        (
            request["id"],
            request["kind"],
            request["symbol"],
            request["side"],
            request["quantity"],
            request["leverage"],
            request["price"],
            request["funding_rate"],
            request["counterparty"][:8],
            _left(request),
        )
        for request in found["requests"]
    ]
    output.table(heads, rows, "nothing waits for a word")


def requests_accept(
    request: RequestId,
    *,
    funding_rate: Annotated[Text, typer.Option(help="Of a rollover, per 24 h; else as the rules say.")] = None,
    price: Annotated[Text, typer.Option(help="Of a rollover, the present one, USD; else as the rules say.")] = None,
    yes: Yes = False,
    key: Key = None,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Accept what a taker asks for. It is shown first; the rules are asked once more at your word."""
    path = f"requests/{_request_id_in(request)}"
    node = node_at("requests accept", data, api, token_file, ca)
    repeat = key_or_new(key)
    if not yes:
        output.facts(_request_facts(_waiting(node, request), funding_rate, price), err=as_json)
    output.agree("Accept it?", yes=yes)
    said = {"funding_rate": funding_rate, "price": price}
    same = " ".join(
        [f"--key {repeat}"]
        + [f"--{name.replace('_', '-')} {value}" for name, value in said.items() if value is not None]
    )
    answer = node.post(f"{path}/accept", said, key=repeat, same=same)
    if as_json:
        output.as_json(answer)
    else:
        typer.echo(f"accepted: the {answer['kind']} of {answer['order_id']}")


def requests_decline(
    request: RequestId,
    *,
    sentence: Annotated[Text, typer.Option(help="What the taker's user reads.")] = None,
    key: Key = None,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Decline what a taker asks for."""
    path = f"requests/{_request_id_in(request)}"
    node = node_at("requests decline", data, api, token_file, ca)
    answer = node.post(f"{path}/reject", None if sentence is None else {"sentence": sentence}, key=key_or_new(key))
    if as_json:
        output.as_json(answer)
    else:
        typer.echo(f"declined: the {answer['kind']} of {answer['order_id']}")


def _request_id_in(text: str) -> str:
    if re.fullmatch(r"[0-9a-f]{32}", text) is None:
        raise LocalError("bad_request_id", f"request id {text[:80]!r} is not 32 hex digits in lower case")
    return text


def _waiting(node: Client, request_id: str) -> Any:
    for request in node.get("requests")["requests"]:
        if request["id"] == request_id:
            return request
    raise LocalError("no_such_request", f"no request {request_id} waits for a word")


def _request_facts(request: Mapping[str, Any], funding_rate: str | None, price: str | None) -> list[tuple[str, object]]:
    return [
        ("a taker asks for", f"{'an' if request['kind'] == 'order' else 'a'} {request['kind']}"),
        ("order", request["order_id"]),
        ("counterparty", request["counterparty"]),
        ("you", f"{request['side']} {request['symbol']}, {output.cell(request['quantity'])} contracts"),
        ("price, USD", price or request["price"]),
        ("leverage", request["leverage"]),
        ("funding per 24 h", funding_rate or request["funding_rate"]),
        ("time left", _left(request)),
    ]


def _left(request: Mapping[str, Any]) -> str:
    return output.since(max(0.0, request["answer_by"] - time.time()))


# --- the policy -------------------------------------------------------------------------------------------------------


def policy(
    context: typer.Context,
    *,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """What a maker accepts. `set` changes it over restarts, `reset` goes back to the configuration."""
    if context.invoked_subcommand is not None:
        flags_behind(context, data, api, token_file, ca)
        return
    _show_policy(node_at("policy", data, api, token_file, ca).get("policy"), as_json)


Accept = Annotated[Text, typer.Option(help="auto: at once, within the rules; manual: by your word.")]
Contracts = Annotated[Texts, typer.Option(help="SYMBOL=contracts, as in BTCUSD=5000; may be repeated.")]


def policy_set(
    *,
    accept_orders: Accept = None,
    accept_rollovers: Accept = None,
    accept_closes: Accept = None,
    min_quantity: Contracts = None,
    max_quantity: Contracts = None,
    max_exposure: Contracts = None,
    max_margin: Annotated[
        Text, typer.Option(help=f"Satoshis of yours over all positions, or `{NO_LIMIT}`: no limit.")
    ] = None,
    max_positions_per_peer: Annotated[int | None, typer.Option(help="That have not ended.")] = None,
    max_quantity_per_peer: Contracts = None,
    max_orders_per_peer: Annotated[int | None, typer.Option(help="On the way to a contract.")] = None,
    price_band: Annotated[
        Text, typer.Option(help="Part of the quote by which an order's price may lie to your disadvantage.")
    ] = None,
    close_band: Annotated[Text, typer.Option(help="The same of the price of a close.")] = None,
    funding_rate: Annotated[
        Texts, typer.Option(help="SYMBOL=rate of rollovers, per 24 h, as in BTCUSD=0.0003; may be repeated.")
    ] = None,
    rate_max_age: Annotated[
        float | None, typer.Option(help="Seconds for which a rate of `cfdnode rates set` is good.")
    ] = None,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Change what a maker accepts, over restarts: what is named alone, and of it those symbols alone."""
    said: dict[str, object] = {
        "accept_orders": accept_orders,
        "accept_rollovers": accept_rollovers,
        "accept_closes": accept_closes,
        "min_quantity": _contracts("min-quantity", min_quantity),
        "max_quantity": _contracts("max-quantity", max_quantity),
        "max_exposure": _contracts("max-exposure", max_exposure),
        "max_positions_per_peer": max_positions_per_peer,
        "max_quantity_per_peer": _contracts("max-quantity-per-peer", max_quantity_per_peer),
        "max_orders_per_peer": max_orders_per_peer,
        "price_band": price_band,
        "close_band": close_band,
        "funding_rate": _by_symbol("funding-rate", funding_rate) if funding_rate else None,
        "rate_max_age": rate_max_age,
    }
    changes = {name: value for name, value in said.items() if value is not None}
    if max_margin is not None:
        changes["max_margin"] = None if max_margin == NO_LIMIT else _whole("max-margin", max_margin)
    if not changes:
        raise LocalError("bad_flags", "policy set: name something to change; `cfdnode policy` shows what is in force")
    _show_policy(node_at("policy set", data, api, token_file, ca).patch("policy", changes), as_json)


def policy_reset(
    *,
    yes: Yes = False,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Go back to the configuration's policy. What `set` changed is shown first, and is forgotten."""
    node = node_at("policy reset", data, api, token_file, ca)
    if not yes:
        view = node.get("policy")
        changed: list[tuple[str, object]] = [(name, _shown(view[name])) for name in view["changed"]]
        if changed:
            output.facts(changed, err=as_json)
            output.agree("These go back to the configuration's. Reset them?", yes=yes)
    _show_policy(node.delete("policy"), as_json)


def _show_policy(view: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        output.as_json(view)
        return
    changed = view["changed"]
    heads = ("setting", "in force", "configured otherwise")
    rows = [
        (name, _shown(value), "yes" if name in changed else "") for name, value in view.items() if name != "changed"
    ]
    output.table(heads, rows, "there is none")


def _shown(value: object) -> str:
    match value:
        case None:
            return "no limit"
        case dict():
            return ", ".join(f"{symbol} {output.cell(each)}" for symbol, each in value.items()) or output.NOTHING
        case float():
            return f"{value:g}" if value != int(value) else output.cell(int(value))
        case _:
            return output.cell(value)


def _contracts(flag: str, given: Sequence[str] | None) -> dict[str, int] | None:
    if not given:
        return None
    return {symbol: _whole(flag, text) for symbol, text in _by_symbol(flag, given).items()}


def _by_symbol(flag: str, given: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        symbol, equals, value = text.partition("=")
        if not (symbol and equals and value):
            raise LocalError("bad_flags", f"--{flag}: {text[:80]!r} is not SYMBOL=VALUE")
        found[symbol] = value
    return found


def _whole(flag: str, text: str) -> int:
    if re.fullmatch(r"[0-9]{1,16}", text) is None:
        raise LocalError("bad_flags", f"--{flag}: {text[:80]!r} is no whole number")
    return int(text)


# --- funding rates ----------------------------------------------------------------------------------------------------


def rates(
    context: typer.Context,
    *,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Funding rates of a maker, by symbol. `set` says one, `withdraw` goes back to the policy's."""
    if context.invoked_subcommand is not None:
        flags_behind(context, data, api, token_file, ca)
        return
    found = node_at("rates", data, api, token_file, ca).get("rates")
    if as_json:
        output.as_json(found)
        return
    rows = [
        (
            symbol,
            "as each position opened" if rate["funding_rate"] is None else rate["funding_rate"],
            output.moment(rate["since"]),
            output.moment(rate["stale_at"]),
            _standing(rate),
        )
        for symbol, rate in found.items()
    ]
    output.table(("symbol", "rate/24 h", "set", "good until", "state"), rows, "nothing is traded")


def rates_set(
    *,
    symbol: Annotated[str, typer.Option(help="BTCUSD or ETHUSD.")] = "BTCUSD",
    funding_rate: Annotated[str, typer.Option(help="Per 24 h; positive: long pays short.")],
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Set a symbol's funding rate. Once it is too old, orders and rollovers wait until it is set anew."""
    node = node_at("rates set", data, api, token_file, ca)
    _tell_rate(symbol, node.put(f"rates/{_symbol_in(symbol)}", {"funding_rate": funding_rate}), as_json)


def rates_withdraw(
    symbol: SymbolArgument,
    *,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Go back to the policy's funding rate of a symbol."""
    node = node_at("rates withdraw", data, api, token_file, ca)
    _tell_rate(symbol, node.delete(f"rates/{_symbol_in(symbol)}"), as_json)


def _symbol_in(text: str) -> str:
    if re.fullmatch(r"[A-Z]{3,12}", text) is None:
        raise LocalError("bad_symbol", f"symbol {text[:80]!r} is not such as BTCUSD")
    return text


def _tell_rate(symbol: str, rate: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        output.as_json(rate)
        return
    said = "as each position opened" if rate["funding_rate"] is None else f"{rate['funding_rate']} per 24 h"
    until = f", good until {output.moment(rate['stale_at'])}" if rate["stale_at"] is not None else ""
    typer.echo(f"{symbol}: {said}{until}")


def _standing(rate: Mapping[str, Any]) -> str:
    if rate["stale"]:
        return "too old: orders and rollovers are refused"
    if rate["since"] is None:
        return "of the policy" if rate["funding_rate"] is not None else ""
    return "in force"
