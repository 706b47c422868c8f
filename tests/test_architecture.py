"""docs/architecture.md is a true map: what stands in it exists, and what exists stands in it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SERVICE = re.compile(r'\.(?:service|reporting)\(\s*f?"([a-z-]+)')
"""Of one that there are several of, ``maker-{…}``, what comes first."""
PATH = re.compile(r"\b(?:protocols|node|scripts|tests|docs)/[\w/.-]*\w")


def rows(heading: str) -> list[list[list[str]]]:
    """What stands between backticks in each cell of each row of the table below this heading."""
    section = MAP.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")] for line in lines]


def first_cells(heading: str) -> list[str]:
    return sorted(name.removesuffix("…") for first, *_ in rows(heading) for name in first)


def modules_in_map(package: str) -> list[str]:
    """Their paths. A folder holds for all that follows in its cell; one that is a row alone has its names beside it."""
    found = []
    for first, second in rows(f"{package}/"):
        if first[0].endswith("/"):
            found += [f"{package}/{first[0]}{name}.py" for name in second]
        else:
            folder = first[0].rpartition("/")[0]
            found += [str(Path(package, folder, Path(name).name)) for name in first]
    return sorted(found)


@pytest.mark.parametrize("package", ["protocols", "node"])
def test_each_module_stands_in_the_map_once(package: str) -> None:
    modules = (file.relative_to(ROOT) for file in (ROOT / package).rglob("*.py") if file.name != "__init__.py")
    assert modules_in_map(package) == sorted(map(str, modules))


def test_each_script_stands_in_the_map() -> None:
    scripts = (file.name for file in (ROOT / "scripts").iterdir() if file.suffix != ".py" and file.name[0] != "_")
    assert first_cells("scripts/") == sorted(scripts)


def test_each_service_stands_in_the_map_once() -> None:
    modules = ("start.py", "core.py", "maker.py", "taker.py", "wallet/service.py", "projections.py", "metrics.py")
    code = [(ROOT / "node" / name).read_text(encoding="utf-8") for name in modules]
    assert first_cells("The services of a node") == sorted({name for text in code for name in SERVICE.findall(text)})


def test_services_need_services() -> None:
    needed = {name for *_, needs in rows("The services of a node") for name in needs}
    assert needed <= set(first_cells("The services of a node"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_path_that_a_document_names_exists(document: Path) -> None:
    named = set(PATH.findall(document.read_text(encoding="utf-8")))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
