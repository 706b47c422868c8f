"""Types of what a configuration file, the environment, a flag or a request of the operator may say."""

import re
from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from protocols.contract.numbers import BadNumber, parse_part, parse_rate
from protocols.contract.symbols import ALLOWED, SYMBOLS


class Sentence(ValueError):
    """What is wrong with a value, as a sentence that shows the value itself."""


def without_secrets(text: str) -> str:
    """Without what stands before the @ of a URL: a user's name, a password, a token."""
    return re.sub(r"(?<=://)[^/@\s]+@", "(secret)@", text)


def _whole(number: object) -> object:
    if isinstance(number, bool | float):
        raise ValueError("is not a whole number")
    return number


def _band(text: str) -> str:
    try:
        parse_part(text, "band", high="0.5")
    except BadNumber as error:
        raise ValueError(f"is not {error.allowed}") from None
    return text


def _rate(text: str) -> str:
    try:
        parse_rate(text)
    except BadNumber as error:
        raise ValueError(f"is not {error.allowed}") from None
    return text


def _symbol(name: str) -> str:
    if name not in SYMBOLS:
        raise ValueError(f"is not a contract symbol that this version knows; allowed is {ALLOWED}")
    return name


Whole = Annotated[int, BeforeValidator(_whole)]
Positive = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Band = Annotated[str, AfterValidator(_band)]
"""A part of a price, 0 to 0.5."""
Rate = Annotated[str, AfterValidator(_rate)]
"""Per 24 h; positive: long pays short."""
Symbol = Annotated[str, AfterValidator(_symbol)]

Value = TypeVar("Value")
BySymbol = Mapping[Symbol, Value]
