"""What a maker's operator allows: said in the configuration, and anew through the API."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from node.values import Band, BySymbol, Positive, Rate, Seconds

Accept = Literal["auto", "manual"]
"""At once, within the rules, or by the word of a person or a bot through the API."""


class Policy(BaseModel):
    """Limits, bands and rates. What has a value for each symbol is 0 (nothing is allowed) where none is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accept_orders: Accept = "auto"
    accept_rollovers: Accept = "auto"
    accept_closes: Accept = "auto"
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
