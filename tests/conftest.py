"""What holds for all tests."""

import hypothesis
import structlog

# Unconfigured, structlog prints every local variable of a traceback: keys among them, and it takes seconds.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

# A deadline asserts on wall-clock time, of which a busy machine gives less.
hypothesis.settings.register_profile("cfdnode", deadline=None)
hypothesis.settings.load_profile("cfdnode")
