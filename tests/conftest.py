"""What holds for all tests."""

import gc

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

# Looking for cycles in all that the tests' modules hold takes a sixth of the time.
gc.set_threshold(100_000, 20, 20)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
