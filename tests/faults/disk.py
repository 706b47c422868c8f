"""A disk that is full, for one running process: `RLIMIT_FSIZE` refuses what it writes (EFBIG)."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from node.regtest.processes import Node


@contextmanager
def full(node: Node) -> Iterator[None]:
    """Nothing that it writes to a file beyond the first byte gets there, its log included."""
    pid = node.process.pid
    limit = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, limit[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
