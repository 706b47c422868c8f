"""The words of docs/glossary.md: those of its column "Not" are used in no name and in no text that a person reads."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = ("protocols", "node", "scripts")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GLOSSARY = ROOT / "docs" / "glossary.md"
Phrase = tuple[str, ...]


def unwanted(glossary: str) -> set[Phrase]:
    """The expressions of the column "Not", as words; those with a parenthesis are for people to judge."""
    phrases = set()
    for row in glossary.splitlines():
        cells = [cell.strip() for cell in row.strip("| ").split("|")]
        if len(cells) == 3 and row.startswith("|") and row.rstrip().endswith("|"):
            phrases |= {tuple(each.split()) for each in cells[2].split(",") if each.strip() and "(" not in each}
    return phrases - {("Not",), ("---",)}


PHRASES = unwanted(GLOSSARY.read_text(encoding="utf-8").split("\n## ")[0])


def words_of_name(name: str) -> list[str]:
    """snake_case and CamelCase alike."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def words_of_text(text: str) -> list[str]:
    # the prefix of protocol paths and hash tags, "cfd/…", is no word of the text; a comma parts an expression
    text = re.sub(r"\bcfd/", "", text)
    return [word.lower() for word in re.findall(r"[A-Za-z0-9]+|[^\w\s-]", text.replace("_", " "))]


def found(words: list[str]) -> set[Phrase]:
    """The unwanted expressions among these words; single words also with an s."""
    singular = {word for phrase in PHRASES if len(phrase) == 1 for word in phrase}
    words = [word[:-1] if word[:-1] in singular and word.endswith("s") else word for word in words]
    return {
        phrase
        for phrase in PHRASES
        for start in range(len(words) - len(phrase) + 1)
        if tuple(words[start : start + len(phrase)]) == phrase
    }


def names_given(tree: ast.AST) -> Iterator[str]:
    """Names that the code gives; not those it only uses (`list.extend` is Python's)."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.arg(arg=name) | ast.alias(asname=str(name)):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield name
            case _:
                pass


def texts(tree: ast.AST) -> Iterator[str]:
    """Every text in the code: sentences of errors, help, docstrings (the command line shows them), keys and names.

    "cfd" alone is the scheme of the streams' requests.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value not in ("cfd", b"cfd"):
            if isinstance(node.value, str):
                yield node.value
            elif isinstance(node.value, bytes):
                yield node.value.decode("latin-1")


def offences(name: str, source: str) -> list[str]:
    tree = ast.parse(source)
    return [
        f"{name}: {' '.join(phrase)!r} in {where[:80]!r}"
        for words, where in [
            *[(words_of_name(given), given) for given in [Path(name).stem, *names_given(tree)]],
            *[(words_of_text(text), text) for text in texts(tree)],
        ]
        for phrase in found(words)
    ]


def modules() -> list[Path]:
    return [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_and_no_text_of_the_code_uses_a_word_it_should_not(path: Path) -> None:
    assert offences(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path != GLOSSARY], ids=lambda path: path.name)
def test_no_page_uses_a_word_it_should_not(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [
        (number, found(words_of_text(line))) for number, line in enumerate(lines, 1) if found(words_of_text(line))
    ] == []


def test_the_table_is_read() -> None:
    assert {("cfd",), ("dlc", "blob"), ("buy",), ("sell",), ("settlement", "interval"), ("quantity", "usd")} <= PHRASES
    assert not any("order" in phrase and len(phrase) == 1 for phrase in PHRASES)


@pytest.mark.parametrize(
    "source",
    [
        "class CfdActor: ...",
        "def take_offer(): ...",
        "def f(price_long): ...",
        "collateral_sat = 1",
        "self.is_sell = True",
        "quantityUsd = 1",
        "import x as renew",
        "raise LocalError('no_cfd', 'x')",
        "'You buy 5 contracts'",
        "f'{x} sells'",
        '"""Extends the contract."""',
        "b'interest'",
        "'a settlement  interval'",
        "'cfd'.join('the cfd')",
    ],
)
def test_an_unwanted_word_is_found(source: str) -> None:
    assert len(offences("module.py", source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "things.extend([1])",
        "'/cfd/ping/1'",
        "tagged_hash('cfd/key', b'')",
        "headers = {':scheme': 'cfd'}",
        "import cfdnode",
        "prologue = b'cfd/1'",
        "'the taker takes offers'",
        "an_order = 'the maker answers an order'",
        "'an uninteresting seller'",
        "price, long = 1, 2",
        "'at this price, long and short'",
    ],
)
def test_a_word_of_another_meaning_is_left_alone(source: str) -> None:
    assert offences("module.py", source) == []
