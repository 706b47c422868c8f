"""``python -m tests.faults``: the matrix by hand, for as long as wanted."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from node.regtest.processes import end_in_order
from tests.faults.matrix import Matrix, Options, run
from tests.faults.proxies import TROUBLES

PARTS = ("kill", "bug", "slow", "hang", "trouble", "full")


def main() -> int:
    """Exit status 0 if everything came out right; else the data stays where it says."""
    usual = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS), help="what is done (all)")
    parser.add_argument("--only", nargs="*", default=(), help="services, or outside worlds (all)")
    parser.add_argument("--troubles", nargs="*", default=TROUBLES, help="of the outside worlds (all)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--lasts", type=float, default=usual.lasts, help="seconds of what does not end by itself")
    parser.add_argument("--delay", type=float, default=usual.delay, help="seconds by which slow steps come late")
    parser.add_argument(
        "--patience", type=float, default=usual.patience, help="left with who hangs; 0: as in production"
    )
    parser.add_argument("--together", type=int, default=usual.together, help="services of a node struck at once")
    parser.add_argument("--answers-within", type=float, default=usual.answers_within)
    said = parser.parse_args()
    if unknown := set(said.parts) - set(PARTS):
        parser.error(f"there are {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    end_in_order()
    began = time.monotonic()

    async def strike(matrix: Matrix) -> None:
        for _ in range(said.rounds):
            for part in said.parts or PARTS:
                match part:
                    case "kill":
                        await matrix.kill("world", said.only)
                    case "bug":
                        await matrix.kill("bug", said.only)
                    case "slow":
                        await matrix.slow(said.only)
                    case "hang":
                        await matrix.hang(said.only)
                    case "full":
                        await matrix.full_disk()
                    case "trouble":
                        await matrix.trouble(said.troubles, said.only)

    def told(doing: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {doing}", flush=True)

    options = Options(
        answers_within=said.answers_within,
        lasts=said.lasts,
        delay=said.delay,
        patience=said.patience or None,
        together=said.together,
    )
    folder = Path(tempfile.mkdtemp(prefix="cfdnode-faults-"))
    print(f"data and logs are in {folder}")
    matrix: Matrix = trio.run(partial(run, folder, 1, options, strike, told))
    print(dict(matrix.business.done))
    for name, asking in matrix.business.asking.items():
        print(f"{name}: {dict(asking.answers)}; slowest {asking.slowest:.1f} s during {asking.slowest_at}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
