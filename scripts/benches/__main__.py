"""scripts/bench NAME… [--json FILE] [--quick]"""

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
    parser.add_argument("--quick", action="store_true", help="only show that it works, where there is such a thing")
    arguments = parser.parse_args(sys.argv[1:] or ["--help"])

    rows = []
    for name in arguments.names:
        module = importlib.import_module(f"scripts.benches.{name}")
        if arguments.quick and not hasattr(module, "quick"):
            parser.error(f"{name} has no --quick")
        for figure in module.quick() if arguments.quick else module.figures():
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
