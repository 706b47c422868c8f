"""Lists that are asked for in pages: so many of them, behind the last one of the page before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query

from node.errors import FieldError

Item = TypeVar("Item")

Limit = Annotated[int | None, Query(ge=1, le=500, description="all of them unless given")]
After = Annotated[str | None, Query(max_length=80, description="the last one of the page before")]


def page_of(
    found: Sequence[Item], key: Callable[[Item], str], limit: int | None, after: str | None, *, field: str = "after"
) -> tuple[Sequence[Item], str | None]:
    """At most `limit` of what was found behind the one whose key is `after`, and the key to ask for the page after this
    one by, None on the last. Raises FieldError for a key that is of none of them."""
    start = 0
    if after is not None:
        start = 1 + next((index for index, each in enumerate(found) if key(each) == after), -1)
        if start == 0:
            raise FieldError(field, f"{field}: {after!r} is none of them, or not any more")
    end = len(found) if limit is None else start + limit
    chosen = found[start:end]
    return chosen, key(chosen[-1]) if end < len(found) else None
