"""Three layers, and one line for each mistake."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import HostPort, MakerConfig, NodeConfig, TakerConfig, WorldConfig, load
from node.errors import ConfigError
from node.networks import NETWORKS

KEY = "dd" * 32
MAKER = f"{'02' * 32}@maker.example:9810"
WORLD = f"""
network = "regtest"
electrum = "127.0.0.1:50001"
[clock]
hour = 2
anchor = 1700000000.5
[oracle]
url = "http://127.0.0.1:8080/"
announcement_key = "{KEY}"
attestation_key = "{"ee" * 32}"
scheme = "olivia-v1"
[regtest]
control = "http://127.0.0.1:8081"
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    path = tmp_path / "world.toml"
    path.write_text(WORLD)
    return path


def test_a_world_is_read_by_both_roles(world: Path) -> None:
    for kind in (MakerConfig, TakerConfig):
        config: NodeConfig = load(kind, paths=[world], environ={})
        assert config.electrum == ("127.0.0.1:50001",)
        assert config.oracle.url == "http://127.0.0.1:8080"
        assert config.regtest is not None
        assert config.regtest.control == "http://127.0.0.1:8081"
        assert config.genesis == NETWORKS["regtest"].genesis_hex
        clock = config.make_clock()
        assert (clock.hour, clock.anchor) == (2.0, 1700000000.5)
        assert config.data.is_absolute()
        assert config.seed_file == config.data / "seed"


def test_flags_win_over_the_environment_and_that_over_files_and_later_over_earlier_files(
    world: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.toml"
    own.write_text('lot = 10\nmax_quantity = 20\nmax_exposure = 30\n[oracle]\nurl = "https://own.example"\n')
    config = load(
        MakerConfig,
        paths=[world, own],
        environ={"CFDNODE_MAX_QUANTITY": "200", "CFDNODE_MAX_EXPOSURE": "300", "PATH": "/bin"},
        flags={"max_exposure": "3000", "lot": None, "log.level": "debug"},
    )
    assert (config.lot, config.max_quantity, config.max_exposure) == (10, 200, 3000)
    assert (config.oracle.url, config.oracle.announcement_key) == ("https://own.example", KEY)
    assert config.log.level == "debug"


def test_the_environment_reaches_tables_and_lists(world: Path) -> None:
    config = load(
        TakerConfig,
        paths=[world],
        environ={
            "CFDNODE_MAKERS": f"{MAKER}, {MAKER}",
            "CFDNODE_FEE_RATE__DEFAULT": "7",
            "CFDNODE_ELECTRUM": "ssl://a.example:50002,b.example:50001",
            "CFDNODE_REGTEST__CONTROL": "http://localhost:1",
        },
    )
    assert config.makers == (MAKER, MAKER)
    assert config.fee_rate.default == 7
    assert config.electrum == ("ssl://a.example:50002", "b.example:50001")
    assert config.regtest is not None
    assert config.regtest.control == "http://localhost:1"


def test_a_makers_policy_is_what_each_setting_says_of_it(world: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'accept = "manual"\nmax_quantity = 200\nmax_exposure = 300\n[policy]\naccept_orders = "auto"\n'
        'price_band = "0.02"\nmax_margin = 5000000\n[policy.funding_rate]\nBTCUSD = "0.0003"\n'
    )
    policy = load(MakerConfig, paths=[world, own], environ={"CFDNODE_POLICY__CLOSE_BAND": "0.002"}).make_policy()
    assert (policy.accept_orders, policy.accept_rollovers, policy.accept_closes) == ("auto", "manual", "manual")
    assert (policy.max_quantity["BTCUSD"], policy.max_exposure["BTCUSD"], policy.max_margin) == (200, 300, 5_000_000)
    assert (policy.price_band, policy.close_band, policy.funding_rate) == ("0.02", "0.002", {"BTCUSD": "0.0003"})
    own.write_text("max_exposure = 300\n[policy.max_exposure]\nBTCUSD = 400\n")
    policy = load(MakerConfig, paths=[world, own], environ={}).make_policy()
    assert (policy.max_exposure["BTCUSD"], policy.max_quantity["BTCUSD"]) == (400, 100_000)
    assert (policy.accept_closes, policy.rate_max_age) == ("auto", 86_400)


def test_what_is_offered_of_each_symbol(world: Path, tmp_path: Path) -> None:
    """The plain keys are BTCUSD's, those of a table ETHUSD's."""
    own = tmp_path / "own.toml"
    own.write_text("lot = 10\nleverages = [1, 4]\n[ethusd]\nmax_quantity = 50\n")
    config = load(MakerConfig, paths=[world, own], environ={"CFDNODE_ETHUSD__LOT": "5"})
    bitcoin, ether = (config.of(symbol) for symbol in config.symbols)
    assert (bitcoin.lot, bitcoin.leverages, bitcoin.max_quantity) == (10, (1, 4), 100_000)
    assert (ether.lot, ether.leverages, ether.max_quantity) == (5, (1, 2, 3, 5, 10), 50)
    assert config.make_policy().max_quantity == {"BTCUSD": 100_000, "ETHUSD": 50}
    only = load(MakerConfig, paths=[world, own], environ={"CFDNODE_SYMBOLS": "BTCUSD"})
    assert only.symbols == ("BTCUSD",)
    assert only.make_policy().max_exposure == {"BTCUSD": 1_000_000}
    with pytest.raises(ConfigError, match=r"'XRPUSD' is not a contract symbol .* allowed is BTCUSD or ETHUSD"):
        load(TakerConfig, paths=[world], environ={"CFDNODE_SYMBOLS": "XRPUSD"})


def test_the_clock_is_the_real_one_when_nothing_is_said(world: Path) -> None:
    text = world.read_text().replace("[clock]\nhour = 2\nanchor = 1700000000.5\n", "")
    world.write_text(text.replace("regtest", "signet").replace('[signet]\ncontrol = "http://127.0.0.1:8081"\n', ""))
    config = load(TakerConfig, paths=[world], environ={})
    assert (config.network, config.genesis) == ("signet", NETWORKS["signet"].genesis_hex)
    assert config.make_clock().hour == 3600


def refusal(kind: type[MakerConfig] | type[TakerConfig] | type[WorldConfig], path: Path, **flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(kind, paths=[path], environ={}, flags={key.replace("__", "."): value for key, value in flags.items()})
    assert "\n" not in caught.value.sentence
    return caught.value.sentence


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("network", "bitcoin", "--network: 'bitcoin' is not a network that this version knows; allowed are mainnet,"),
        ("api", "0.0.0.0:1", "--api: '0.0.0.0:1' is not an address of this machine alone; for others"),
        ("listen", "here", "--listen: 'here' is not host:port, with a port of 0 to 65535 and IPv6 hosts in brackets"),
        ("listen", "::1:99", "--listen: '::1:99' is not host:port, with a port"),
        ("lot", "0", "--lot: '0': input should be greater than or equal to 1"),
        ("lot", 1.0, "--lot: 1.0 is not a whole number"),
        ("lot", True, "--lot: True is not a whole number"),
        ("leverages", "1,x", "--leverages: 'x': input should be a valid integer, unable to parse string as an integer"),
        ("leverages", "", "--leverages: '': value should have at least 1 item after validation, not 0"),
        ("leverages", "1,5,3", "--leverages: 1,5,3: allowed are up to 32 different numbers to 1000 in rising order"),
        ("leverages", "2,1001", "--leverages: 2,1001: allowed are up to 32"),
        ("accept", "maybe", "--accept: 'maybe': input should be 'auto' or 'manual'"),
        ("policy__price_band", "0.6", "--policy-price-band: '0.6' is not a decimal string from 0 to 0.5 with"),
        ("policy__accept_closes", "never", "--policy-accept-closes: 'never': input should be 'auto' or 'manual'"),
        ("policy__max_margin", 1.5, "--policy-max-margin: 1.5 is not a whole number"),
        ("policy__max_exposure", {"DOGEUSD": 1}, "--policy-max-exposure: 'DOGEUSD' is not a contract symbol that this"),
        ("policy__funding_rate", {"BTCUSD": "2"}, "--policy-funding-rate: '2' is not a decimal string from -1 to 1"),
        ("electrum", ["a:1", "b"], "--electrum: electrum server 'b': write host:port"),
        ("fee_rate", {"default": "1"}, "--fee-rate: '1': input should be greater than or equal to 2"),
        ("fee_rate", {"default": "501"}, "--fee-rate: lowest 2 ≤ default 501 ≤ highest 500 does not hold"),
        ("oracle__attestation_key", "DD" * 32, f"--oracle-attestation-key: '{'DD' * 32}' is not 64 hex digits"),
        ("oracle__url", "ftp://x", "--oracle-url: 'ftp://x' is not http://host[:port][/path] or https://…"),
        ("clock__hour", "0", "--clock-hour: '0': input should be greater than 0"),
        ("clock__hour", "inf", "--clock-hour: 'inf': input should be a finite number"),
        ("abandon_after", "9", "--abandon-after: '9': input should be greater than or equal to 10"),
        ("abandon_after", "601", "--abandon-after: '601': input should be less than or equal to 600"),
        ("abandon_after", "nan", "--abandon-after: 'nan': input should be "),
        ("log__level", "loud", "--log-level: 'loud': input should be 'debug', 'info', 'warning' or 'error'"),
        ("data", "~nobody-of-this-name/x", "--data: ~nobody-of-this-name/x: "),
        ("data", "", "--data: '' is no path; the present directory is ."),
        ("colour", "blue", "--colour: there is no such setting"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_named_with_its_value_and_what_is_allowed(
    world: Path, flag: str, value: object, told: str
) -> None:
    assert refusal(MakerConfig, world, **{flag: value}).startswith(told)


@pytest.mark.parametrize(
    ("rate", "told"), [("-0.001", "is negative: it bounds rates of"), ("2", "is not a decimal string")]
)
def test_the_bound_of_a_rollovers_rate_is_a_rate_without_a_sign(world: Path, rate: str, told: str) -> None:
    sentence = refusal(TakerConfig, world, rollover__max_rate=rate)
    assert sentence.startswith(f"--rollover-max-rate: '{rate}' {told}")


def test_a_wrong_peer_address_is_named(world: Path) -> None:
    assert refusal(TakerConfig, world, makers=["02" * 32 + "@h"]).startswith("--makers: peer address: 'h' has no port")


def test_mistakes_in_a_file_are_named_with_the_file_and_the_key(world: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"

    def told(content: str, kind: type[MakerConfig] | type[TakerConfig] = TakerConfig) -> str:
        own.write_text(content)
        with pytest.raises(ConfigError) as caught:
            load(kind, paths=[world, own], environ={})
        return caught.value.sentence.removeprefix(f"{own}: ")

    assert told("lot = 3") == "lot: there is no such setting"
    assert told("[oracle]\nurll = 'x'") == "oracle.urll: there is no such setting"
    assert told("lot = 0\n[log]\nlevel=1", MakerConfig).endswith("(and 1 more)")
    assert told("oracle = 3").startswith("oracle: 3: input should be a valid dictionary")
    assert told("lot == 3").startswith("Invalid value (at line 1")
    assert told('network = "signet"').startswith(
        f"{world}: clock: this table is allowed on regtest only, and the network is signet"
    )
    assert refusal(TakerConfig, tmp_path / "none.toml") == f"{tmp_path}/none.toml: No such file or directory"
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert refusal(TakerConfig, tmp_path / "binary.toml").startswith(f"{tmp_path}/binary.toml: 'utf-8' codec")


@pytest.mark.parametrize(
    "name", ["CFDNODE_LOT", "CFDNODE_ORACLE", "CFDNODE_ORACLE__URLL", "CFDNODE_DATA__X", "CFDNODE_"]
)
def test_a_variable_that_sets_nothing_is_named(world: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(TakerConfig, paths=[world], environ={name: "x"})
    assert caught.value.sentence == f"{name}: there is no such setting for the environment to set"


def test_what_is_needed_and_not_set_is_named_with_the_ways_to_set_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^network is needed and not set .*CFDNODE_NETWORK.*and 2 more"):
        load(TakerConfig, environ={})
    path = tmp_path / "half.toml"
    path.write_text(f'network="signet"\nelectrum="h:1"\n[oracle]\nurl="https://o"\nattestation_key="{KEY}"')
    with pytest.raises(ConfigError) as caught:
        load(TakerConfig, paths=[path], environ={})
    assert caught.value.sentence.startswith("oracle.announcement_key is needed and not set")


@given(st.text() | st.integers() | st.floats(), st.sampled_from([*MakerConfig.model_fields, "x"]))
def test_no_value_is_met_with_anything_but_a_configuration_or_one_line(value: object, field: str) -> None:
    flags: dict[str, object] = {
        "network": "regtest",
        "electrum": "h:1",
        "oracle": {"url": "http://h", "announcement_key": KEY, "attestation_key": KEY},
        field: value,
    }
    told = ""
    try:
        load(MakerConfig, environ={}, flags=flags)
    except ConfigError as error:
        told = error.sentence
    assert "\n" not in told


@pytest.mark.parametrize("text", ["127.0.0.1:1", "[::1]:65535", "maker.example:0"])
def test_addresses_are_shown_as_they_are_written(text: str) -> None:
    assert str(HostPort.parse(text)) == text
