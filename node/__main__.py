"""``python -m node`` is ``cfdnode``."""

from node.cli import run

# worker processes import this module, under another name
if __name__ == "__main__":
    run()
