"""The command ``cfdnode``. Bad input is one line on stderr and exit status 2, before anything is touched."""

from node.cli.app import main, run
from node.cli.output import BAD_INPUT

__all__ = ["BAD_INPUT", "main", "run"]
