"""What answers are made of: satoshis, decimal strings, hex, seconds since 1970, and of when they are."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

Sat = int
Price = str
"""USD, or a rate: a decimal string."""
Hex = str
At = float
"""Seconds since 1970."""
Side = Literal["long", "short"]


class Aged(BaseModel):
    """Of when an answer is; with a reason it is the last known one."""

    as_of: At
    age: float
    stale: bool
    reason: str | None


class Trouble(BaseModel):
    code: str
    sentence: str
