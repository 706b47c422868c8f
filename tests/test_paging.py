"""Lists in pages: each item once, in order, whatever the size of the pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import FieldError
from node.web.paging import page_of


@given(st.lists(st.integers(0, 999), unique=True, max_size=30), st.integers(1, 40))
def test_pages_are_the_whole(found: list[int], limit: int) -> None:
    seen: list[int] = []
    after: str | None = None
    for _ in range(len(found) + 1):
        page, after = page_of(found, str, limit, after)
        assert len(page) <= limit
        seen += page
        if after is None:
            break
    assert seen == found


def test_without_a_limit_it_is_all_that_is_behind() -> None:
    assert page_of("abc", str, None, None) == ("abc", None)
    assert page_of("abc", str, None, "a") == ("bc", None)


def test_a_key_that_is_gone_is_named() -> None:
    with pytest.raises(FieldError, match="before: 'x' is none of them"):
        page_of("abc", str, 2, "x", field="before")
