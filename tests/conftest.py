"""What holds for all tests."""

import hypothesis
import structlog

# Unconfigured, structlog prints every local variable of a traceback: keys among them, and it takes seconds. And it
# prints to the standard output, where tests read what a command said.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
)

# A deadline asserts on wall-clock time, of which a busy machine gives less.
hypothesis.settings.register_profile("cfdnode", deadline=None)
hypothesis.settings.load_profile("cfdnode")
