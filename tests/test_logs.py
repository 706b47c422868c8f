"""What is logged, and what never is."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from node import logs


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level, configured = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.configure(**configured)


def fail_with_a_key() -> None:
    private_key = bytes.fromhex("5ec2e7") * 10
    raise ValueError(f"a key of {len(private_key)} bytes")


@pytest.mark.parametrize("style", ["json", "console"])
def test_secrets_are_in_no_field_and_in_no_traceback(capsys: pytest.CaptureFixture[str], style: str) -> None:
    logs.configure("info", style)
    log = structlog.get_logger("test")
    log.info("made", seed="5ec2e7", order={"Salt": "5ec2e7", "quantity": 100}, txid="ab")
    try:
        fail_with_a_key()
    except ValueError:
        log.exception("failed", token="5ec2e7")
    logging.getLogger("some.library").warning("own words", extra={"password": "5ec2e7"})
    told = capsys.readouterr().err
    assert "5ec2e7" not in told
    assert b"5ec2e7".hex() not in told
    assert told.count(logs.REDACTED) == 4
    assert "a key of 30 bytes" in told
    assert "fail_with_a_key" in told
    assert "own words" in told
    if style == "json":
        lines = [json.loads(line) for line in told.splitlines()]
        assert [line["event"] for line in lines] == ["made", "failed", "own words"]
        assert lines[0]["order"] == {"Salt": logs.REDACTED, "quantity": 100}
        assert lines[2]["level"] == "warning"


def test_the_level_holds_for_libraries_too_and_chatty_ones_only_warn(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", "json")
    logging.getLogger("httpx2").info("request")
    logging.getLogger("other").debug("detail")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["detail"]
    logs.configure("warning", "json")
    structlog.get_logger("test").info("not shown")
    assert capsys.readouterr().err == ""
