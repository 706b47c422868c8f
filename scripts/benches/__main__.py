"""scripts/bench NAME… [--json FILE]"""

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import scripts.benches
from scripts.benches import Figure


def main() -> None:
    names = sorted(module.name for module in pkgutil.iter_modules(scripts.benches.__path__) if module.name[0] != "_")
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure; one line a figure.",
        epilog=f"What can be measured: {', '.join(names)}",
    )
    parser.add_argument("names", metavar="NAME", nargs="+", choices=names)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there as a list of objects, too")
    arguments = parser.parse_args(sys.argv[1:] or ["--help"])

    rows = []
    for name in arguments.names:
        for figure in importlib.import_module(f"scripts.benches.{name}").figures():
            print(f"{name}: {figure}", flush=True)
            rows.append(row(name, figure))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def row(bench: str, figure: Figure) -> dict[str, object]:
    return {
        "bench": bench,
        "name": figure.name,
        "ours": figure.ours,
        "unit": figure.unit,
        "reference": figure.reference,
        "reference_name": figure.reference_name,
        "ratio": figure.ratio,
        "spread": figure.spread,
    }


main()
