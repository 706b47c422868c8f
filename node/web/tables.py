"""Tables for spreadsheets, which take a text that begins with certain signs for a formula, and may run it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

COLUMNS = (
    *("order_id", "symbol", "side", "quantity", "leverage", "price", "placed_at", "ended_at", "state", "margin"),
    *("kind", "payout", "profit", "txid", "counterparty", "refusal"),
)
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def cell(value: object) -> str:
    """What is no number and could be a formula begins with a quote."""
    text = "" if value is None else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") and not NUMBER.fullmatch(text) else text


def history_table(views: Iterable[Mapping[str, Any]]) -> str:
    """Positions that are over, as the API shows them, one a line; `profit` is payout less margin."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\r\n")
    table.writerow(COLUMNS)
    for view in views:
        paid, margin, refusal = view.get("paid") or {}, view.get("margin"), view.get("refusal") or {}
        payout = paid.get("payout")
        row = {
            **view,
            "leverage": view.get("taker_leverage"),
            "placed_at": _moment(view.get("placed_at")),
            "ended_at": _moment(view.get("changed_at")),
            "kind": paid.get("kind"),
            "payout": payout,
            "profit": payout - margin if payout is not None and margin is not None else None,
            "txid": paid.get("txid"),
            "refusal": refusal.get("sentence"),
        }
        table.writerow([cell(row.get(name)) for name in COLUMNS])
    return out.getvalue()


def _moment(at: float | None) -> str | None:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S") if at else None
