"""``python -m tests.faults.node <port file> maker|taker …``: `cfdnode`, whose services can be
struck over the port that the file names."""

import sys
from pathlib import Path


def main() -> None:
    from node.cli import main as cfdnode
    from tests.faults.injection import Faults

    Faults().install(Path(sys.argv[1]))
    sys.exit(cfdnode(sys.argv[2:]))


# worker processes import this module, under another name
if __name__ == "__main__":
    main()
