"""Services that ended because one that they need did: told in one line for each cause, with all their names."""

from __future__ import annotations

from typing import NoReturn

import structlog
import trio
from attrs import define, field

from node.errors import Disconnected

TOLD_AFTER = 1.0
"""Seconds for which others are waited for that end for the same cause."""

_log = structlog.get_logger(__name__)


@define
class Fallen:
    _needed: dict[str, str] = field(factory=dict)
    """By service the one that it lost."""
    _reasons: dict[str, str] = field(factory=dict)
    """By lost service why it is not available."""
    _bell: trio.Event = field(factory=trio.Event)

    def note(self, service: str, lost: Disconnected) -> None:
        self._needed.setdefault(service, lost.service)
        self._reasons.setdefault(lost.service, lost.reason)
        self._bell.set()

    async def run(self) -> NoReturn:
        """Tell, for ever."""
        while True:
            await self._bell.wait()
            await trio.sleep(TOLD_AFTER)
            for cause, services in self._by_cause().items():
                reason = self._reasons[cause]
                _log.warning("services ended with one that they need", needed=cause, services=services, reason=reason)
            self._needed.clear()
            self._reasons.clear()
            self._bell = trio.Event()

    def _by_cause(self) -> dict[str, list[str]]:
        """By the first that went, those that went for it, also by way of others."""
        found: dict[str, list[str]] = {}
        for service in self._needed:
            cause, passed = service, {service}
            while (before := self._needed.get(cause)) is not None:
                cause = before
                if cause in passed:
                    break
                passed.add(cause)
            found.setdefault(cause, []).append(service)
        return found
