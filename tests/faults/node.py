"""``python -m tests.faults.node <port file> <longest patience> maker|taker …``: `cfdnode`, whose services can be
struck over the port that the file names."""

import sys
from pathlib import Path


def main() -> None:
    from node.cli import main as cfdnode
    from tests.faults.injection import Faults

    Faults().install(Path(sys.argv[1]), float(sys.argv[2]) or None)
    sys.exit(cfdnode(sys.argv[3:]))


# worker processes import this module, under another name
if __name__ == "__main__":
    main()
