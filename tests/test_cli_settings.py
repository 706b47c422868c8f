"""`cfdnode config`: files with every setting, which load; the effective configuration, without what is secret."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from node import cli
from node.cli.settings import Kind, Setting, commented, settings_of, toml
from node.config import MakerConfig, NodeConfig, TakerConfig, WorldConfig, load
from node.networks import NETWORKS

MODELS: dict[Kind, type[NodeConfig | WorldConfig]] = {
    Kind.MAKER: MakerConfig,
    Kind.TAKER: TakerConfig,
    Kind.REGTEST: WorldConfig,
}
KEY = "dd" * 32
NEEDED: dict[str, object] = {
    "electrum": ["ssl://a.example:1", "ssl://b.example:1", "ssl://c.example:1"],
    "oracle.url": "http://127.0.0.1:1",
    "oracle.announcement_key": KEY,
    "oracle.attestation_key": KEY,
}
"""Whatever has no default."""
SECRET = "hunter2hunter2"
CASES = [(kind, network) for kind in Kind for network in NETWORKS]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CFDNODE_")]:
        monkeypatch.delenv(name)


def loaded(kind: Kind, path: Path, **more: object) -> BaseModel:
    flags = {} if kind is Kind.REGTEST else NEEDED
    return load(MODELS[kind], paths=[path], environ={}, flags={**flags, **more})


@pytest.mark.parametrize(("kind", "network"), CASES)
def test_the_written_file_loads_and_changes_nothing(kind: Kind, network: str, tmp_path: Path) -> None:
    path, bare = tmp_path / "node.toml", tmp_path / "bare.toml"
    assert cli.main(["config", "init", kind.value, str(path), "--network", network]) == 0
    bare.write_text("" if kind is Kind.REGTEST else f'network = "{network}"')
    assert loaded(kind, path) == loaded(kind, bare)


@pytest.mark.parametrize(("kind", "network"), CASES)
def test_the_defaults_in_it_are_the_defaults(kind: Kind, network: str, tmp_path: Path) -> None:
    """Each line with a value, without its "# ", says what was so anyway."""
    path, bare = tmp_path / "node.toml", tmp_path / "bare.toml"
    tables = ("prices.", "regtest.") if network == "regtest" else ("prices.", "regtest.", "clock.")
    lines = [line.removeprefix("# ") for line in commented(kind, network).splitlines()]
    settings = [line for line in settings_of(kind, network) if isinstance(line, Setting)]
    names = {setting.name for setting in settings if not setting.name.startswith(tables)}
    given = [line for line in lines if line.partition(" =")[0] in names and not line.endswith(" =")]
    assert len(given) > len(names) / 2
    path.write_text("\n".join(given))
    bare.write_text("" if kind is Kind.REGTEST else f'network = "{network}"')
    assert loaded(kind, path) == loaded(kind, bare)


@pytest.mark.parametrize("kind", Kind)
def test_every_setting_stands_there_and_is_explained(kind: Kind) -> None:
    def names(model: BaseModel, prefix: str = "") -> set[str]:
        found = set()
        for name in type(model).model_fields:
            value = getattr(model, name)
            found |= names(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}"}
        return found

    network: dict[str, object] = {} if kind is Kind.REGTEST else {**NEEDED, "network": "regtest"}
    effective = load(MODELS[kind], environ={}, flags=network)
    settings = [line for line in settings_of(kind, "regtest") if isinstance(line, Setting)]
    there = {setting.name for setting in settings}
    assert names(effective) - {"prices", "regtest"} <= there
    assert [setting.name for setting in settings if not setting.comment] == []
    assert {setting.name for setting in settings if setting.needed} == network.keys()


def test_a_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "node.toml"
    assert cli.main(["config", "init", "taker", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(path), "needed": [*NEEDED]}
    path.write_text("mine")
    assert cli.main(["config", "init", "taker", str(path)]) == 2
    assert path.read_text() == "mine"
    assert cli.main(["config", "init", "taker", str(tmp_path / "other.toml"), "--network", "moon"]) == 2
    assert "'moon' is no network" in capsys.readouterr().err


def test_the_effective_configuration_is_shown_and_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        f'network = "regtest"\nelectrum = "127.0.0.1:1"\n[oracle]\nurl = "http://user:{SECRET}@127.0.0.1:1"\n'
        f'announcement_key = "{KEY}"\nattestation_key = "{KEY}"\n[notify]\nurls = ["json://{SECRET}@h/x"]\n'
    )
    monkeypatch.setenv("CFDNODE_LOG__LEVEL", "debug")
    arguments = ["config", "show", "maker", "--config", str(path), "--data", str(tmp_path / "data")]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    shown = tomllib.loads(out)
    assert shown["data"] == str(tmp_path / "data")
    assert shown["log"]["level"] == "debug"
    assert shown["oracle"]["url"] == "http://(secret)@127.0.0.1:1"
    assert "# public = (not set)\n" in out
    assert cli.main([*arguments, "--json"]) == 0
    as_json = capsys.readouterr().out
    assert json.loads(as_json)["log.level"] == "debug"
    assert SECRET not in out + as_json


@pytest.mark.parametrize("value", [True, 7, 0.5, 'a "b" \\ ü', ["x", 1], {}, {"BTCUSD": 5}])
def test_values_are_written_as_toml_reads_them(value: Any) -> None:
    assert tomllib.loads(f"value = {toml(value)}") == {"value": value}
