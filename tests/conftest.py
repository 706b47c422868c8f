"""What holds for all tests."""

import structlog

# Unconfigured, structlog prints every local variable of a traceback: keys among them, and it takes seconds.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)
