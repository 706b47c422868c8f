"""Who is signed in at the page, and how often somebody may try.

A session is 32 random bytes in a cookie; kept is their hash alone, in a file, so that people stay signed in over a
restart of the node. Each names the password's hash of its time, and ends when that changes, whoever changed it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Literal

import structlog
import trio
from attrs import asdict, define, field, frozen

from node import files
from node.clock import Clock
from node.web.passwords import is_password, kept_hash, set_password

LASTS = 30 * 86_400.0
"""Seconds for which a session is good."""
MOST = 64
"""Sessions at once; a further one ends the oldest."""
LOOK_EVERY = 1.0
"""Seconds between looks at the password on disk, which may be changed there."""
DISK_WITHIN = 5.0

By = Literal["password", "token"]

log = structlog.get_logger("node")


@frozen
class Session:
    """`mark` is of the password at the time of signing in; times are seconds since 1970."""

    by: By
    mark: str
    until: float


class Sessions:
    """`data` is the data directory; without one, or while it cannot be used, all this is in memory only."""

    def __init__(self, data: Path | None, clock: Clock) -> None:
        self._data = data
        self._clock = clock
        self._sessions: OrderedDict[str, Session] | None = None  # by the secret's hash, the oldest first
        self._hash = ""
        self._looked_at: float | None = None
        self._hashing = trio.CapacityLimiter(1)  # each takes 64 MiB
        self._turn = trio.Lock()
        self._looking = trio.Lock()

    async def password_set(self) -> bool:
        return bool(await self._kept_hash())

    async def find(self, secret: str) -> Session | None:
        """The session that this is the secret of, if it is still good."""
        found = (await self._all()).get(_digest(secret))
        if found is None or found.until < self._clock.now() or found.mark != _digest(await self._kept_hash()):
            return None
        return found

    async def begin(self, by: By) -> str:
        """A new session's secret."""
        secret = secrets.token_urlsafe(32)
        mark = _digest(await self._kept_hash())
        known, now = await self._all(), self._clock.now()
        for name in [name for name, each in known.items() if each.until < now or each.mark != mark]:
            del known[name]
        while len(known) >= MOST:
            known.popitem(last=False)
        known[_digest(secret)] = Session(by, mark, now + LASTS)
        await self._keep()
        return secret

    async def end(self, secret: str) -> None:
        if (await self._all()).pop(_digest(secret), None) is not None:
            await self._keep()

    async def is_password(self, password: str) -> bool:
        kept = await self._kept_hash()
        return bool(kept) and await trio.to_thread.run_sync(is_password, kept, password, limiter=self._hashing)

    async def set_password(self, password: str) -> None:
        """Ends every session. Raises what `passwords.set_password` does."""
        assert self._data is not None
        await trio.to_thread.run_sync(set_password, self._data, password, limiter=self._hashing)
        self._looked_at = None
        (await self._all()).clear()
        await self._keep()

    # The disk may hang, or be gone: then what was last known of it holds.

    async def _kept_hash(self) -> str:
        if self._data is None:
            return ""
        async with self._looking:  # until it was read for the first time, nobody may take it for unset
            if self._looked_at is None or trio.current_time() - self._looked_at >= LOOK_EVERY:
                try:
                    with trio.move_on_after(DISK_WITHIN):
                        self._hash = await trio.to_thread.run_sync(kept_hash, self._data, abandon_on_cancel=True)
                except OSError as error:
                    log.warning("the password's hash cannot be read", reason=str(error))
                self._looked_at = trio.current_time()
        return self._hash

    async def _all(self) -> OrderedDict[str, Session]:
        async with self._turn:
            if self._sessions is None:
                found: OrderedDict[str, Session] = OrderedDict()
                if self._data is not None:
                    with trio.move_on_after(DISK_WITHIN):
                        found = await trio.to_thread.run_sync(_read, self._data, abandon_on_cancel=True)
                self._sessions = found
        return self._sessions

    async def _keep(self) -> None:
        if self._data is None or self._sessions is None:
            return
        text = json.dumps({name: asdict(each) for name, each in self._sessions.items()})
        write = partial(files.write_private, files.sessions_file(self._data), text)
        try:
            async with self._turn:
                with trio.move_on_after(DISK_WITHIN):
                    await trio.to_thread.run_sync(write, abandon_on_cancel=True)
        except OSError as error:
            log.warning("sessions end with the node: they cannot be kept", reason=str(error))


def _read(data: Path) -> OrderedDict[str, Session]:
    """What is in the file; nothing if that is damaged."""
    try:
        kept = json.loads(files.sessions_file(data).read_text(encoding="utf-8"))
        return OrderedDict((str(name), Session(**each)) for name, each in kept.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return OrderedDict()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@define
class _Bucket:
    left: float
    at: float


@define(eq=False)
class Attempts:
    """How often somebody may try to sign in: a few times at once, then one try at a time; by source, and in all."""

    burst: int = 5
    every: float = 30.0
    """Seconds until a source may try once more."""
    burst_of_all: int = 30
    every_of_all: float = 5.0
    _buckets: OrderedDict[str, _Bucket] = field(init=False, factory=OrderedDict)

    def take(self, source: str) -> float:
        """0.0 if this try is allowed, and then it counts; else the seconds until one will be."""
        waits = [self._wait(*each) for each in self._limits(source)]
        if any(waits):
            return max(waits)
        for key, _, _ in self._limits(source):
            self._buckets[key].left -= 1
        return 0.0

    def give_back(self, source: str) -> None:
        """That try was right."""
        for key, burst, _ in self._limits(source):
            if key in self._buckets:
                self._buckets[key].left = min(burst, self._buckets[key].left + 1)

    def _limits(self, source: str) -> tuple[tuple[str, int, float], ...]:
        return ("", self.burst_of_all, self.every_of_all), (f"from {source}", self.burst, self.every)

    def _wait(self, key: str, burst: int, every: float) -> float:
        now = trio.current_time()
        bucket = self._buckets.pop(key, None) or _Bucket(burst, now)
        bucket.left, bucket.at = min(burst, bucket.left + (now - bucket.at) / every), now
        self._buckets[key] = bucket  # the newest last
        while len(self._buckets) > 1000:
            self._buckets.popitem(last=False)
        return 0.0 if bucket.left >= 1 else (1 - bucket.left) * every
