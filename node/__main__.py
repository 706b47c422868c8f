"""``python -m node`` is ``cfdnode``."""

from node.cli import run

run()
