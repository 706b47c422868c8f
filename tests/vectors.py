"""Published test vectors, which lie beside the project and not in it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def vector(path: str) -> Path:
    """The file of that name among the vectors; skips the test where there are none."""
    file = ROOT.parent / "shared" / "vectors" / path
    if not file.exists():
        pytest.skip(f"the test vector {path} is not on this machine")
    return file
