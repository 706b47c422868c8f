"""Logging: structlog and the standard library's loggers in one stream on stderr, and no secret in it."""

import logging
import sys
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
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("hpack", "h2", "httpcore2", "httpx2", "hyperframe"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
