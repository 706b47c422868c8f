"""The configuration of a maker, a taker or a regtest world: TOML files, then the environment, then flags; later wins.

Every problem is one `ConfigError` of one line that says where (the flag, the variable, or the file and key) and what is
allowed. The three layers are merged here, and not by pydantic-settings, because that forgets which of them a value came
from and lets misspelt variables pass.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar, get_args

from attrs import frozen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from node import files
from node.clock import Clock
from node.errors import ConfigError
from node.layers import PREFIX, Tree, by_name, in_file, is_field, merge, nest, one_line, read
from node.networks import NAMES, NETWORKS, chain_named
from node.policy import Accept, Policy
from node.values import Band, Positive, Rate, Seconds, Sentence, Symbol, Whole
from protocols.contract.numbers import BadNumber, parse_part
from protocols.contract.symbols import SYMBOLS
from protocols.contract.terms import Timelocks
from protocols.errors import LocalError

LEVERAGES = (1, 2, 3, 5, 10)
"""What takers may choose, unless the maker says otherwise."""


@frozen
class HostPort:
    """``host:port``, an IPv6 host in brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: object) -> "HostPort":
        if isinstance(text, cls):
            return text
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", str(text))
        if match is None or int(match[3]) > 65535:
            raise ValueError("is not host:port, with a port of 0 to 65535 and IPv6 hosts in brackets")
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def _host_name(text: object) -> object:
    if not (isinstance(text, str) and re.fullmatch(r"[a-z0-9.-]{1,253}(:[0-9]{1,5})?", text)):
        raise ValueError("is no host name in lower case, with or without a port")
    return text


def _served(text: object) -> HostPort:
    address = HostPort.parse(text)
    return HostPort("127.0.0.1", address.port) if address.host == "localhost" else address


def _network(name: object) -> object:
    if name not in NETWORKS:
        raise ValueError(f"is not a network that this version knows; allowed are {NAMES}")
    return name


def _key(text: object) -> object:
    if not (isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text)):
        raise ValueError("is not 64 hex digits in lower case")
    return text


def _url(text: object) -> object:
    if not (isinstance(text, str) and re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", text)):
        raise ValueError("is not http://host[:port][/path] or https://…")
    return text.rstrip("/")


def _explorer(text: object) -> object:
    if text is None or text == "none":
        return text
    if not (isinstance(text, str) and re.fullmatch(r"https?://[^\s/?#@]+/[^\s?#]*", text)):
        raise ValueError("is not https://host/path/, after which a transaction's id follows, or none")
    return text


def _feed_url(text: object) -> object:
    match = re.fullmatch(r"wss?://(?:\[[0-9a-fA-F:.]+\]|[^\s/?#@:\[\]]+)(?::([0-9]{1,5}))?(/[^\s?#]*)?", str(text))
    if match is None or int(match[1] or 0) > 65535:
        raise ValueError("is not ws://host[:port][/path] or wss://…")
    return text


def _secret_url(text: SecretStr) -> SecretStr:
    if re.fullmatch(r"[a-z0-9]{2,20}://\S+", text.get_secret_value()) is None:
        raise Sentence("one is not scheme://… (it is not shown: it may hold a secret)")
    return text


def _step(text: object) -> object:
    try:
        parse_part(text if isinstance(text, str) else repr(text), "step", high="0.1")
    except BadNumber as error:
        raise ValueError(f"is not {error.allowed}") from None
    return text


def _hosts(servers: Sequence[str]) -> set[str]:
    from node.chain.servers import ServerAddress

    return {ServerAddress.parse(text).host.lower() for text in servers}


def _electrum_server(text: object) -> str:
    from node.chain.servers import ServerAddress

    return _parsed(ServerAddress.parse, text)


def _peer_address(text: object) -> str:
    from node.network.address import PeerAddress

    return _parsed(PeerAddress.parse, text)


def _parsed(parse: Callable[[str], object], value: object) -> str:
    text = str(value)
    try:
        parse(text)
    except LocalError as error:
        raise Sentence(error.sentence) from None
    return text


def _named(path: object) -> object:
    if path == "":
        raise ValueError("is no path; the present directory is .")
    return path


def _rising(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if len(numbers) > 32 or numbers[-1:] > (1000,) or list(numbers) != sorted(set(numbers)):
        raise Sentence(f"{','.join(map(str, numbers))}: allowed are up to 32 different numbers to 1000 in rising order")
    return numbers


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise Sentence(f"{path}: {error}") from None


def _list(value: object) -> object:
    """A single value where several may stand; from the environment, separated by commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Directory = Annotated[Path, BeforeValidator(_named), AfterValidator(_at_home)]
File = Directory
DataDirectory = Annotated[Directory, Field(validate_default=True)]
Address = Annotated[HostPort, BeforeValidator(HostPort.parse)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(_list)]
ServedAddress = Annotated[HostPort, BeforeValidator(_served)]
HostName = Annotated[str, BeforeValidator(_host_name)]
HostNames = Annotated[tuple[HostName, ...], BeforeValidator(_list)]
Key = Annotated[str, BeforeValidator(_key)]
Url = Annotated[str, BeforeValidator(_url)]
Step = Annotated[str, BeforeValidator(_step)]
Explorer = Annotated[str | None, BeforeValidator(_explorer)]
FeedUrl = Annotated[str, BeforeValidator(_feed_url)]
NetworkName = Annotated[str, BeforeValidator(_network)]
ElectrumServers = Annotated[
    tuple[Annotated[str, BeforeValidator(_electrum_server)], ...], BeforeValidator(_list), Field(min_length=1)
]
PeerAddresses = Annotated[tuple[Annotated[str, BeforeValidator(_peer_address)], ...], BeforeValidator(_list)]
Symbols = Annotated[tuple[Symbol, ...], BeforeValidator(_list), Field(min_length=1)]
SecretUrls = Annotated[tuple[Annotated[SecretStr, AfterValidator(_secret_url)], ...], BeforeValidator(_list)]
NotifiedKind = Literal["ordered", "refused", "opened", "rollover", "closing", "ended", "alarm", "health"]
Leverages = Annotated[tuple[Positive, ...], BeforeValidator(_list), Field(min_length=1), AfterValidator(_rising)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ClockTable(_Table):
    """How the calendar of the oracle's events passes; on regtest only."""

    hour: Seconds = 3600.0
    """Seconds that an hour takes."""
    anchor: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """The moment, in seconds since 1970, from which on hours take so long."""


class OracleTable(_Table):
    """The oracle that contracts are settled by."""

    url: Url
    """Of its HTTP API."""
    announcement_key: Key
    """x-only, of the signature on announcements."""
    attestation_key: Key
    """x-only, of the attested digits."""
    scheme: Literal["dlc", "dlc-sha256", "olivia-v1"] = "dlc"
    """Of its announcements and attestations: `protocols.contract.oracle.SCHEMES`."""


class PricesTable(_Table):
    """The exchange whose quotes the node goes by."""

    url: FeedUrl
    """Of a realtime feed as BitMEX's, ``wss://ws.bitmex.com/realtime``."""
    stale_after: Annotated[float, Field(gt=0, le=120)] = 120.0
    """Seconds; from then on no price is made from a quote."""


class SymbolTable(_Table):
    """What a maker offers of one symbol; the defaults are ETHUSD's."""

    lot: Positive = SYMBOLS["ETHUSD"].lot
    """Quantities are multiples of this many contracts."""
    leverages: Leverages = LEVERAGES
    """What takers may choose."""
    own_leverage: Positive = 1
    """The maker's."""
    max_quantity: Positive = 1_000
    """Of one order, in contracts."""
    max_exposure: Positive = 10_000
    """Contracts of one side less those of the other, over all positions, that further orders may reach."""


class FeeRateTable(_Table):
    """Whole satoshis per virtual byte for a new position's transactions, when the chain's estimate says nothing
    (`default`), and the bounds within which an estimate is believed."""

    default: Annotated[Whole, Field(ge=2)] = 2
    """When the chain's estimate says nothing."""
    lowest: Annotated[Whole, Field(ge=2)] = 2
    """A lower estimate counts as this."""
    highest: Annotated[Whole, Field(ge=2)] = 500
    """A higher estimate counts as this."""

    @model_validator(mode="after")
    def _ordered(self) -> "FeeRateTable":
        if not self.lowest <= self.default <= self.highest:
            raise Sentence(f"lowest {self.lowest} ≤ default {self.default} ≤ highest {self.highest} does not hold")
        return self


class RolloverTable(_Table):
    """How a taker's positions are rolled over."""

    auto: bool = True
    """By themselves, as soon as they may be."""
    max_rate: Rate | None = None
    """The largest funding rate per 24 h that is accepted, of either sign; unless given, ten times that which the
    position was opened with, at least 0.001 and at most 0.005."""

    @field_validator("max_rate")
    @classmethod
    def _without_a_sign(cls, rate: str | None) -> str | None:
        if rate is not None and rate.startswith("-"):
            raise ValueError("is negative: it bounds rates of either sign")
        return rate


class BackupTable(_Table):
    """Where the positions' backup is kept (docs/backup.md)."""

    path: Directory | None = None
    """A directory; ``backup`` in the data directory unless given. Better one on another disk."""


class PeersTable(_Table):
    """Who may connect, and how peers are dialled (docs/transport.md)."""

    allow: File | None = None
    """A file with the ids of the only peers that may connect, read again when it changes; unless given, all may."""
    block: File | None = None
    """A file with the ids of peers that may not connect, and are not dialled."""
    proxy: Address | None = None
    """A SOCKS5 proxy through which peers are dialled; onion addresses need one."""
    proxy_for: Literal["all", "onions"] = "all"
    """Which addresses are dialled through it."""


class NotifyTable(_Table):
    """Who is told of events of positions and changes of health (docs/operator-guide.md); nobody unless given."""

    urls: SecretUrls = ()
    """Webhooks and services in Apprise's notation, such as `json://host/path` or `ntfys://host/topic`. They may hold
    secrets, and are shown nowhere."""
    command: tuple[str, ...] = ()
    """A program and its arguments, run for each notification with a JSON object on its standard input."""
    events: Annotated[tuple[NotifiedKind, ...], BeforeValidator(_list)] = get_args(NotifiedKind)
    """What is told."""
    quiet: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """Seconds for which a service has to be unwell, or well again, before that is told."""


class WebTable(_Table):
    """How the page and the API may be reached from other machines (docs/operator-guide.md)."""

    cert: Directory | None = None
    """The certificate's file (PEM, with its chain); the API is served by TLS then."""
    key: Directory | None = None
    """A PEM file with the key of the certificate."""
    hosts: HostNames = ()
    """Names by which browsers reach it, beside its own address; others are refused."""
    insecure: bool = False
    """Serve others without TLS all the same: password and token are sent in the clear."""

    @model_validator(mode="after")
    def _both(self) -> "WebTable":
        if (self.cert is None) != (self.key is None):
            raise Sentence("cert and key belong together, and one of them is missing")
        return self


class RegtestTable(_Table):
    """What a regtest world says of itself in its ``world.toml``."""

    control: Url
    """Its HTTP control: funds, blocks, prices."""


class LogTable(_Table):
    """The log, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """From which on it is logged."""
    format: Literal["console", "json"] = "console"
    """Lines for people, or JSON for programs."""


class NodeConfig(_Table):
    """What a maker and a taker have in common."""

    role: ClassVar[str]
    ports: ClassVar[Mapping[str, int]]
    """The default ports on mainnet by field; `node.networks` says by how much others differ."""

    network: NetworkName
    """Which chain: mainnet, signet, testnet4 or regtest."""
    data: DataDirectory
    """The data directory: seed, store, wallet, API token. ``~/.cfdnode/<network>/<role>`` unless said otherwise."""
    electrum: ElectrumServers
    """Electrum servers, host:port or ssl://host:port; `node.networks` says how many different hosts a network needs."""
    oracle: OracleTable
    web: WebTable = WebTable()
    api: ServedAddress
    """Where the page and the API are served: on this machine alone, unless `web` says how others may reach it."""
    symbols: Symbols = tuple(SYMBOLS)
    """What is traded: the oracle must announce its events, and the exchange, if there is one, quote it."""
    prices: PricesTable | None = None
    clock: ClockTable = ClockTable()
    fee_rate: FeeRateTable = FeeRateTable()
    abandon_after: Annotated[float, Field(ge=10, le=600)] = 600.0
    """Seconds after our signatures left; a lock that is in no mempool then is given up, its coins are spent back."""
    cooperative_spend: bool = True
    """Whether a published commit is spent together with the peer once the oracle spoke: neither waits for its lock."""
    backup: BackupTable = BackupTable()
    notify: NotifyTable = NotifyTable()
    peers: PeersTable = PeersTable()
    log: LogTable = LogTable()
    explorer: Explorer = None
    """Where people look a transaction up, whose id follows; the network's own unless given, "none" for no links."""
    genesis: Key = ""
    """The hash of the chain's first block; where it is given, it must be the network's."""
    regtest: RegtestTable | None = None

    @classmethod
    def defaults(cls, network_name: str) -> Tree:
        """Of the settings whose defaults differ between networks; the name is a known one."""
        network = NETWORKS[network_name]
        ports = {field: HostPort("127.0.0.1", port + network.port_offset) for field, port in cls.ports.items()}
        return {"data": f"~/.cfdnode/{network.name}/{cls.role}", "genesis": network.genesis_hex, **ports}

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Tree) -> Tree:
        name = values.get("network")
        network = name if isinstance(name, str) and name in NETWORKS else "mainnet"  # then the name is refused, alone
        return {**cls.defaults(network), **values}

    @field_validator("api")
    @classmethod
    def _guarded(cls, api: HostPort, info: ValidationInfo) -> HostPort:
        web = info.data.get("web")
        if api.host != "127.0.0.1" and web is not None and web.cert is None and not web.insecure:
            raise Sentence(
                f"'{api}' is not an address of this machine alone; for others to reach it, give web.cert and web.key,"
                " or accept with web.insecure that passwords are sent in the clear"
            )
        return api

    @field_validator("electrum")
    @classmethod
    def _independent(cls, servers: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        network = NETWORKS.get(info.data.get("network", ""))
        if network is not None and len(hosts := _hosts(servers)) < network.electrum_servers:
            raise Sentence(
                f"{network.name} asks for {network.electrum_servers} independent Electrum servers, on different hosts:"
                f" one that hid a commit would cost you the contract; given is only {', '.join(sorted(hosts))}"
            )
        return servers

    @field_validator("genesis")
    @classmethod
    def _of_the_network(cls, genesis: str, info: ValidationInfo) -> str:
        network = NETWORKS.get(info.data.get("network", ""))
        if network is not None and genesis != network.genesis_hex:
            raise Sentence(f"{genesis} is that of {chain_named(genesis)}, and the network is {network.name}")
        return genesis

    @field_validator("clock", "regtest")
    @classmethod
    def _regtest_only(cls, table: _Table, info: ValidationInfo) -> _Table:
        if info.data.get("network", "regtest") != "regtest":
            raise Sentence(f"this table is allowed on regtest only, and the network is {info.data['network']}")
        return table

    @property
    def seed_file(self) -> Path:
        return files.seed_file(self.data)

    @property
    def backup_folder(self) -> Path:
        return self.backup.path or files.backup_folder(self.data)

    @property
    def explorer_base(self) -> str | None:
        """What a transaction's id is appended to, for a link."""
        return None if self.explorer == "none" else self.explorer or NETWORKS[self.network].explorer

    @property
    def timelocks(self) -> Timelocks:
        """The relative locks of this network's contracts: the maker offers them, the taker takes no others."""
        return NETWORKS[self.network].timelocks

    def make_clock(self) -> Clock:
        return Clock(hour=self.clock.hour, anchor=self.clock.anchor)


class MakerConfig(NodeConfig):
    role = "maker"
    ports = {"listen": 9810, "api": 9811}

    listen: Address
    """Where takers connect."""
    listen_also: Addresses = ()
    """Where else they do."""
    public: Address | None = None
    """What takers are told to dial, if it is not `listen`."""
    lot: Positive = SYMBOLS["BTCUSD"].lot
    """Quantities are multiples of this many contracts; of BTCUSD, as are the next four."""
    leverages: Leverages = LEVERAGES
    """What takers may choose."""
    own_leverage: Positive = 1
    """The maker's."""
    max_quantity: Positive = 100_000
    """Of one order, in contracts."""
    max_exposure: Positive = 1_000_000
    """Contracts of one side less those of the other, over all positions, that further orders may reach."""
    ethusd: SymbolTable = SymbolTable()
    """The same five of ETHUSD."""
    quote_step: Step = "0.0005"
    """The part of its price by which an offer with a spread may lag behind the quote before it is priced anew."""
    accept: Accept = "auto"
    """Orders, rollovers and closes within the policy's rules are accepted at once, or wait for a word through the
    API; `policy` may say otherwise of each kind."""
    policy: Policy = Policy()
    """What is accepted; its `max_quantity` and `max_exposure` go before those above."""

    def of(self, symbol: str) -> SymbolTable:
        """What is offered of this symbol."""
        if symbol == "ETHUSD":
            return self.ethusd
        return SymbolTable(**{name: getattr(self, name) for name in SymbolTable.model_fields})

    def make_policy(self) -> Policy:
        """What is in force until the operator says otherwise through the API."""
        limits = Policy(
            accept_orders=self.accept,
            accept_rollovers=self.accept,
            accept_closes=self.accept,
            max_quantity={symbol: self.of(symbol).max_quantity for symbol in self.symbols},
            max_exposure={symbol: self.of(symbol).max_exposure for symbol in self.symbols},
        )
        return limits.changed(self.policy)


class TakerConfig(NodeConfig):
    role = "taker"
    ports = {"api": 9821}

    makers: PeerAddresses = ()
    """<64 hex digits>@host:port of each; several addresses of one maker are tried in this order."""
    rollover: RolloverTable = RolloverTable()
    close_band: Band = "0.001"
    """The part of the price by which a close may be worse than the newest quote; the limit that is suggested."""
    close_if_oracle_lies: bool = True
    """Whether closes of all open positions are proposed, at the quote, once the oracle has contradicted itself."""


class WorldConfig(_Table):
    """A regtest world: see `node.regtest.world`."""

    data: DataDirectory = Path("~/.cfdnode/regtest/world")
    """Where it keeps its ports, and `world.toml` for nodes."""
    hour: Seconds = 3600.0
    """Seconds that an hour takes; a block comes every sixth of it."""
    prices: Path | None = None
    """A file with bitcoin's price path."""
    seed: Whole = 1
    """Of the random walks: of ether's price, and of bitcoin's when there is no file."""
    electrum_port: Annotated[Whole, Field(ge=0, le=65535)] = 0
    """Of the Electrum server; 0: the one it had before, or any."""
    oracle_port: Annotated[Whole, Field(ge=0, le=65535)] = 0
    """Of the oracle."""
    exchange_port: Annotated[Whole, Field(ge=0, le=65535)] = 0
    """Of the exchange."""
    control_port: Annotated[Whole, Field(ge=0, le=65535)] = 0
    """Of the control."""
    log: LogTable = LogTable()


Config = TypeVar("Config", bound=_Table)


def load(
    kind: type[Config],
    *,
    paths: Sequence[Path] = (),
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    """The configuration of the files at `paths` (later ones win), environment and flags.

    `flags` maps dotted keys to values, None for a flag that was not given. Raises `ConfigError`. Nothing is touched.
    """
    merged: Tree = {}
    origin: dict[tuple[str, ...], str] = {}
    for path in paths:
        merge(merged, read(path), origin, partial(in_file, path))
    for name, value in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(PREFIX):
            keys = tuple(name.removeprefix(PREFIX).lower().split("__"))
            if not is_field(kind, keys):
                raise ConfigError(f"{name}: there is no such setting for the environment to set")
            merge(merged, nest(keys, value), origin, partial(by_name, name))
    for dotted, given in (flags or {}).items():
        if given is not None:
            flag = "--" + dotted.replace(".", "-").replace("_", "-")
            merge(merged, nest(tuple(dotted.split(".")), given), origin, partial(by_name, flag))
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(one_line(error, origin)) from None
