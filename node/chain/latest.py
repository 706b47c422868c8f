"""A value that tasks wait on. Whoever waits gets the newest, however many it missed: nothing queues up behind a slow
reader."""

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Latest(Generic[T]):
    """The newest `value`, until `fail` says that there will be no other."""

    def __init__(self, value: T) -> None:
        self.value = value
        self._version = 0
        self._failure: Callable[[], Exception] | None = None
        self._waiting = trio.lowlevel.ParkingLot()

    def set(self, value: T) -> None:
        self.value = value
        self._version += 1
        self._waiting.unpark_all()

    def fail(self, failure: Callable[[], Exception]) -> None:
        """From now on every wait raises what `failure` returns."""
        self._failure = failure
        self._waiting.unpark_all()

    def changes(self) -> "Changes[T]":
        """The value now, and the newest one after each time it was set."""
        return Changes(self)


class Changes(Generic[T]):
    """What `Latest.changes` returns: a class and no generator, so that leaving a loop over it leaves nothing open."""

    def __init__(self, source: Latest[T]) -> None:
        self._source = source
        self._seen = -1

    def __aiter__(self) -> "Changes[T]":
        return self

    async def __anext__(self) -> T:
        source = self._source
        await trio.lowlevel.checkpoint()
        while source._failure is None and source._version == self._seen:
            await source._waiting.park()
        if source._failure is not None:
            raise source._failure()
        self._seen = source._version
        return source.value
