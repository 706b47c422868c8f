"""Logging: structlog and the standard library's loggers in one stream on stderr, and no secret in it."""

import json
import logging
import sys
from collections import deque
from collections.abc import Mapping

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SECRET_FIELDS = frozenset(
    [
        *("seed", "words", "phrase", "mnemonic", "passphrase", "password", "token", "authorization"),
        *("secret", "secrets", "secret_key", "private_key", "salt", "nonce", "secret_nonce", "scalar"),
        *("fund_secret", "publish_secret", "revoke_secret", "static_secret"),
    ]
)
"""Names under which no value is ever logged. The second line of defence: secrets have no repr in the first place."""

REDACTED = "(secret)"


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: the values of `SECRET_FIELDS` replaced, in nested mappings too."""
    return {key: _redacted(key, value) for key, value in event.items()}


def _redacted(key: object, value: object) -> object:
    if isinstance(key, str) and key.lower() in SECRET_FIELDS:
        return REDACTED
    if isinstance(value, Mapping):
        return {inner: _redacted(inner, content) for inner, content in value.items()}
    return value


class Recent(logging.Handler):
    """The last lines of the log, in memory, as records of strings: `at`, `level`, `logger`, `event` and what else was
    said. Bounded in number and in size."""

    KEPT = 1000
    LONGEST = 2000
    """Characters of one value."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[dict[str, str]] = deque(maxlen=self.KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = json.loads(self.format(record))
        except (ValueError, TypeError):  # as every handler: logging must not end what logs
            self.handleError(record)
            return
        line = {"at": str(said.pop("timestamp", "")), **{name: str(value) for name, value in said.items()}}
        self._lines.append({name: value[: self.LONGEST] for name, value in line.items()})

    def last(self, lines: int) -> list[dict[str, str]]:
        """The newest last."""
        return list(self._lines)[-lines:]


RECENT = Recent()
"""Of this process."""


def configure(level: str = "info", style: str = "console") -> None:
    """Log to stderr from `level` (debug, info, warning, error) on, as lines for people or as ``json``.

    Tracebacks are plain: one that shows local variables would show keys.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    last: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if style == "json"
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    RECENT.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler, RECENT]
    root.setLevel(level.upper())
    for chatty in ("hpack", "h2", "httpcore2", "httpx2", "hyperframe"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
