"""What a maker's operator allows: said in the configuration, and anew through the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from attrs import Factory, frozen
from pydantic import BaseModel, ConfigDict, Field

from node import files
from node.values import Band, BySymbol, Positive, Rate, Seconds, Symbol

Accept = Literal["auto", "manual"]
"""At once, within the rules, or by the word of a person or a bot through the API."""


class Policy(BaseModel):
    """Limits, bands and rates. What has a value for each symbol is 0 (nothing is allowed) where none is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accept_orders: Accept = Field(
        default="auto", description="orders are accepted at once, within the rules, or wait for a word"
    )
    accept_rollovers: Accept = Field(default="auto", description="the same of rollovers")
    accept_closes: Accept = Field(default="auto", description="the same of closes")
    min_quantity: BySymbol[Positive] = Field(default={}, description="of one order, in contracts; 1 unless given")
    max_quantity: BySymbol[Positive] = Field(default={}, description="of one order, in contracts")
    max_exposure: BySymbol[Positive] = Field(
        default={}, description="contracts of one side less those of the other, over all positions"
    )
    max_margin: Positive | None = Field(
        default=None, description="satoshis of the maker's, over all positions; null: no limit"
    )
    max_positions_per_peer: Positive = Field(default=100, description="that have not ended")
    max_quantity_per_peer: BySymbol[Positive] = Field(
        default={}, description="contracts of either side, over all positions; no limit unless given"
    )
    max_orders_per_peer: Positive = Field(default=8, description="on the way to a contract")
    price_band: Band = Field(
        default="0.01", description="part of the quote by which an order's price may lie to the maker's disadvantage"
    )
    close_band: Band = Field(default="0.001", description="the same of the price of a close")
    funding_rate: BySymbol[Rate] = Field(
        default={}, description="of rollovers, per 24 h; the one that the position opened with unless given"
    )
    rate_max_age: Seconds = Field(
        default=86_400.0, description="seconds for which a rate that was set through the API is good"
    )

    def changed(self, said: Policy) -> Policy:
        """This one, with what is set in `said`; of what has a value for each symbol, those symbols alone."""
        changes = said.model_dump(exclude_unset=True)
        for name, value in changes.items():
            if isinstance(value, dict):
                changes[name] = {**getattr(self, name), **value}
        return self.model_copy(update=changes)


@frozen
class Kept:
    """What the operator said through the API: it goes before the configuration, and outlives the node.

    A small file beside the events, written whole or not at all: of a wish the last one counts, and a damaged store must
    not let go of a limit."""

    changes: Policy = Factory(Policy)
    """What was said of it; what was not is the configuration's."""
    rates: Mapping[str, tuple[str, float]] = Factory(dict)
    """By symbol the funding rate per 24 h, and when it was said, seconds since 1970."""

    @classmethod
    def read(cls, data: Path) -> Kept:
        """Of that data directory. Raises `OSError`, ValueError for a file that is damaged."""
        try:
            text = files.policy_file(data).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        said = _KeptFile.model_validate_json(text)
        return cls(said.policy, {symbol: (each.funding_rate, each.since) for symbol, each in said.rates.items()})

    def write(self, data: Path) -> None:
        """Raises `OSError`."""
        rates = {symbol: {"funding_rate": rate, "since": since} for symbol, (rate, since) in self.rates.items()}
        said = {"policy": self.changes.model_dump(exclude_unset=True), "rates": rates}
        files.write_private(files.policy_file(data), json.dumps(said, indent=1) + "\n")


class _KeptRate(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    funding_rate: Rate
    since: float


class _KeptFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Policy
    rates: Mapping[Symbol, _KeptRate]
