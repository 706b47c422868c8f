"""The command ``cfdnode``. Bad input is one line on stderr and exit status 2, before anything is touched."""

import http.client
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer

from node import files
from protocols.errors import LocalError, WorldError

if TYPE_CHECKING:
    from node.config import NodeConfig

Settings = TypeVar("Settings", bound="NodeConfig")

BAD_INPUT = 2
"""Also when the node that is asked cannot be reached."""
UNHEALTHY = 1
ANSWERED_WITHIN = 10.0
REPAIRED_WITHIN = 1800.0
"""Seconds that a node's API has for its answer; the wallet may have to look through the whole chain."""
LAST_CALL = 8.0
"""Seconds after the signal to end at which the process ends, whatever hangs: what matters is on disk."""

app = typer.Typer(
    name="cfdnode",
    help="A peer-to-peer node for bitcoin-settled contracts for difference.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
seed_app = typer.Typer(help="The seed words: the one secret of a node.")
app.add_typer(seed_app, name="seed")


def _flag(text: str) -> Any:
    """A flag that is checked together with the file and the environment, in `node.config`."""
    return typer.Option(help=text, show_default=False)


Files = Annotated[list[Path] | None, typer.Option("--config", help="TOML file; may be repeated, later ones win.")]
Text = str | None
Texts = list[str] | None
Data = Annotated[Text, _flag("Data directory.")]
BackupPath = Annotated[Text, _flag("Directory of the backup; best on another disk.")]
Network = Annotated[Text, _flag("mainnet, signet, testnet4 or regtest.")]
Electrum = Annotated[Texts, _flag("Electrum server, host:port or ssl://host:port; may be repeated.")]
Api = Annotated[Text, _flag("127.0.0.1:port of the HTTP API; port 0 lets the system choose.")]
FeeRate = Annotated[Text, _flag("Satoshis per virtual byte when the chain's estimate says nothing.")]
LogLevel = Annotated[Text, _flag("debug, info, warning or error.")]
LogFormat = Annotated[Text, _flag("console or json.")]
Listen = Annotated[Text, _flag("host:port for takers to connect to.")]
Public = Annotated[Text, _flag("host:port that takers are told, if it is not --listen.")]


@app.command()
def maker(
    *,
    config: Files = None,
    data: Data = None,
    network: Network = None,
    backup: BackupPath = None,
    electrum: Electrum = None,
    api: Api = None,
    listen: Listen = None,
    public: Public = None,
    accept: Annotated[Text, _flag("auto or manual: who answers orders, rollovers and closes.")] = None,
    lot: Annotated[Text, _flag("Quantities are multiples of this many contracts.")] = None,
    leverages: Annotated[Text, _flag("What takers may choose, separated by commas.")] = None,
    max_quantity: Annotated[Text, _flag("Largest order, in contracts.")] = None,
    max_exposure: Annotated[Text, _flag("Largest exposure over all positions, in contracts.")] = None,
    fee_rate: FeeRate = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run a maker."""
    from node.config import MakerConfig, load

    flags = {
        "data": data,
        "network": network,
        "backup": backup if backup is None else {"path": backup},
        "electrum": electrum or None,
        "api": api,
        "listen": listen,
        "public": public,
        "accept": accept,
        "lot": lot,
        "leverages": leverages,
        "max_quantity": max_quantity,
        "max_exposure": max_exposure,
        "fee_rate": fee_rate if fee_rate is None else {"default": fee_rate},
        "log.level": log_level,
        "log.format": log_format,
    }
    settings = load(MakerConfig, paths=config or (), flags=flags)
    _refuse_if_in_use(settings.data)
    _serve(settings, "node.maker")


@app.command()
def taker(
    *,
    config: Files = None,
    data: Data = None,
    network: Network = None,
    backup: BackupPath = None,
    electrum: Electrum = None,
    api: Api = None,
    makers: Annotated[Texts, _flag("A maker's address, <64 hex digits>@host:port; may be repeated.")] = None,
    rollover_auto: Annotated[
        bool | None, typer.Option(help="Whether positions are rolled over by themselves.", show_default=False)
    ] = None,
    fee_rate: FeeRate = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run a taker."""
    from node.config import TakerConfig, load

    flags = {
        "data": data,
        "network": network,
        "backup": backup if backup is None else {"path": backup},
        "electrum": electrum or None,
        "api": api,
        "makers": makers or None,
        "rollover.auto": rollover_auto,
        "fee_rate": fee_rate if fee_rate is None else {"default": fee_rate},
        "log.level": log_level,
        "log.format": log_format,
    }
    settings = load(TakerConfig, paths=config or (), flags=flags)
    _refuse_if_in_use(settings.data)
    _serve(settings, "node.taker")


@app.command()
def regtest(
    *,
    config: Files = None,
    data: Data = None,
    hour: Annotated[Text, _flag("Seconds that an hour takes.")] = None,
    prices: Annotated[Text, _flag("File with the price path.")] = None,
    seed: Annotated[Text, _flag("Seed of the random walk, when there is no file.")] = None,
    electrum_port: Annotated[Text, _flag("Port of the Electrum server; 0 lets the system choose.")] = None,
    oracle_port: Annotated[Text, _flag("Port of the oracle.")] = None,
    exchange_port: Annotated[Text, _flag("Port of the exchange.")] = None,
    control_port: Annotated[Text, _flag("Port of the control.")] = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run a world in a box. It has a chain, an Electrum server, an oracle, an exchange; nodes read its world.toml."""
    from node.config import WorldConfig, load

    flags = {
        "data": data,
        "hour": hour,
        "prices": prices,
        "seed": seed,
        "electrum_port": electrum_port,
        "oracle_port": oracle_port,
        "exchange_port": exchange_port,
        "control_port": control_port,
        "log.level": log_level,
        "log.format": log_format,
    }
    settings = load(WorldConfig, paths=config or (), flags=flags)
    _set_up_logs(settings.log.level, settings.log.format)
    try:
        from node.regtest.world import run_world
    except ModuleNotFoundError as error:
        if error.name != "pbk":
            raise
        raise LocalError("no_regtest", "regtest needs the extra: pip install 'cfdnode[demo]'") from None
    _until_told_to_end(partial(run_world, settings))


NodeData = Annotated[Path | None, typer.Option("--data", help="Data directory of a node of this machine.")]
NodeApi = Annotated[Text, typer.Option("--api", help="URL of the node's API, if not as in --data.")]
TokenFile = Annotated[Path | None, typer.Option("--token-file", help="File with the API's token, if not in --data.")]


@app.command()
def health(
    *,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="The API's answer, for programs.")] = False,
) -> None:
    """Print a line per service. Exit status 0: all healthy, 1: not all, 2: the node cannot be reached.

    Under a service that is not healthy stand the causes of its failures, the newest first, and what can be asked of it
    with `cfdnode service`."""
    from node.health import ServiceHealth, all_healthy, details, line

    url, token = _node("health", data, api, token_file)
    answer = _ask("GET", url, "/api/v1/health", token)
    services = [ServiceHealth.from_json(service) for service in answer["services"]]
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        for warning in answer.get("warnings", ()):
            typer.echo(warning)
        width = max(len(service.name) for service in services)
        for service in services:
            typer.echo(line(service, time.time(), width))
            for detail in details(service, time.time()):
                typer.echo(f"    {detail}")
    if not all_healthy(services):
        raise typer.Exit(UNHEALTHY)


@app.command()
def service(
    name: Annotated[str, typer.Argument(help="The service, as `cfdnode health` names it.")],
    action: Annotated[str, typer.Argument(help="start, stop, restart, or a repair that it offers now.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Accept the consequence of a repair.")] = False,
    data: NodeData = None,
    api: NodeApi = None,
    token_file: TokenFile = None,
) -> None:
    """Start, stop, restart or repair a service. Exit status 0: done, 2: refused, or the node cannot be reached."""
    from node.health import ServiceHealth, line

    for word in (name, action):
        if re.fullmatch(r"[a-z0-9-]{1,60}", word) is None:
            raise LocalError("bad_name", f"service: {word[:80]!r} is no name of a service, action or repair")
    url, token = _node("service", data, api, token_file)
    if action in ("start", "stop", "restart"):
        answer = _ask("POST", url, f"/api/v1/services/{name}/{action}", token)
    else:
        path = f"/api/v1/services/{name}/repairs/{action}"
        answer = _ask("POST", url, path, token, {"confirm": yes}, within=REPAIRED_WITHIN)
    typer.echo(line(ServiceHealth.from_json(answer), time.time()))


@app.command()
def address(config: Files = None, data: Data = None, listen: Listen = None, public: Public = None) -> None:
    """Print the address by which takers reach this maker."""
    from node.config import MakerConfig, load
    from node.network.address import Identity
    from node.wallet.seed import Seed

    flags = {"data": data, "listen": listen, "public": public}
    settings = load(MakerConfig, paths=config or (), flags=flags)
    peer = Identity(Seed.read(settings.seed_file).node_identity()).public
    typer.echo(f"{peer}@{settings.public or settings.listen}")


@app.command("force-close")
def force_close(
    order_id: Annotated[str, typer.Argument(help="The position's order id, 32 hex digits.")],
    *,
    data: Annotated[Path, typer.Option(help="Data directory of a node that runs on this machine.")],
) -> None:
    """Close a position without the peer. Its commit is published now; the oracle's price settles at expiry."""
    position = _post(data, order_id, "force-close")
    typer.echo(f"{position['state']}: the commit is {position['contract']['commit_txid']}")


@app.command()
def close(
    order_id: Annotated[str, typer.Argument(help="The position's order id, 32 hex digits.")],
    *,
    limit: Annotated[Text, typer.Option(help="USD, the worst price that is good enough.", show_default=False)] = None,
    data: Annotated[Path, typer.Option(help="Data directory of a taker that runs on this machine.")],
) -> None:
    """Close a position together with its maker. The price is the present one."""
    asked = _post(data, order_id, "close", {"limit": limit})
    typer.echo(f"the maker is asked to close at {asked['price']}; the position tells what becomes of it")


@app.command("rollover")
def roll_over(
    order_id: Annotated[str, typer.Argument(help="The position's order id, 32 hex digits.")],
    *,
    data: Annotated[Path, typer.Option(help="Data directory of a taker that runs on this machine.")],
) -> None:
    """Roll a position over now. The maker's next contract expires later; the taker does so by itself, too."""
    _post(data, order_id, "rollover")
    typer.echo("the maker is asked; the position tells what becomes of it")


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="File to write; there must be none yet.")],
    *,
    data: Annotated[Path, typer.Option(help="Data directory of a node, which may be running.")],
) -> None:
    """Write one sealed file of all positions. With the seed words it restores them on another machine."""
    from node.backup.restore import export
    from node.eventstore.lock import lock_directory
    from node.wallet.seed import Seed

    target = file.absolute()
    if _in_use(data):
        url = _contents(files.url_file(data), "is the node running?")
        token = _contents(files.token_file(data), "the node writes it on its first start")
        count = _ask("POST", url, "/api/v1/backup", token, {"path": str(target)})["positions"]
    else:
        seed = Seed.read(files.seed_file(data))
        with _directory_errors(data), lock_directory(data):
            network = _contents(files.network_file(data), "no node ran there yet")
            role = _contents(files.role_file(data), "no node ran there yet")
            count = export(files.store_file(data), seed.secret, network, role, target)
    typer.echo(f"{count} positions are in {target}; without the seed words nobody can read it, you neither")


@app.command()
def restore(
    *,
    data: Annotated[Path, typer.Option(help="Data directory to make: empty, or with an imported seed alone.")],
    backup_at: Annotated[Path, typer.Option("--backup", help="The backup's directory, or one file.")],
    config: Files = None,
    skip_damaged: Annotated[bool, typer.Option(help="Restore what can be read, and name what cannot.")] = False,
) -> None:
    """Make a data directory of the seed words and a backup. The words are asked for, unless they are imported there."""
    from node.backup.restore import RESTORING, read_backup, restore_into
    from node.eventstore.lock import lock_directory
    from node.wallet.seed import Seed

    allowed = {"seed", "backup", "lock", "network", "role"}
    try:
        there = {path.name for path in data.iterdir()} if data.exists() else set()
    except OSError as error:
        raise LocalError("bad_data_directory", f"{data}: {error.strerror}") from None
    if other := sorted(name for name in there - allowed if RESTORING not in name):
        raise LocalError(
            "data_not_empty", f"{data}: there is something in it already ({', '.join(other[:5])}); name a new directory"
        )
    imported = files.seed_file(data).exists()
    seed = Seed.read(files.seed_file(data)) if imported else Seed.from_words(_words())
    found = read_backup(backup_at, seed.secret, skip_damaged=skip_damaged)
    if config:
        _check_config(config, data, found.network, found.role)
    with _directory_errors(data):
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock_directory(data):
            for path, ours in ((files.network_file(data), found.network), (files.role_file(data), found.role)):
                known = path.read_text(encoding="utf-8").strip() if path.exists() else ours
                if known != ours:
                    raise LocalError("other_node", f"{data}: it belongs to {known[:20]}, the backup to {ours}")
                path.write_text(f"{ours}\n", encoding="utf-8")
            if not imported:
                seed.write(files.seed_file(data))
            restored = restore_into(
                files.store_file(data), backup_at, seed.secret, found.network, found.role, skip_damaged=skip_damaged
            )
    for name, why in sorted(restored.damaged.items()):
        typer.echo(f"passed over: {name}: {why}", err=True)
    typer.echo(
        f"{len(restored.positions)} positions of a {found.role} on {found.network} are restored into {data}. They are"
        " recovered: no commit of them is published by itself. Close them together with the peer, or start the node"
        " and wait until the peer force closes."
    )


@seed_app.command("new")
def seed_new(data: Annotated[Path, typer.Option(help="Data directory to keep the seed in.")]) -> None:
    """Make, keep and print new seed words. Write them down: they are the only backup of your coins."""
    from node.wallet.seed import Seed

    seed = Seed.generate()
    seed.write(files.seed_file(data))
    typer.echo(seed.words)


@seed_app.command("import")
def seed_import(data: Annotated[Path, typer.Option(help="Data directory to keep the seed in.")]) -> None:
    """Keep seed words that you have. They are read from the terminal without echo, or from standard input."""
    from node.wallet.seed import Seed

    Seed.from_words(_words()).write(files.seed_file(data))


def _words() -> str:
    """Seed words, from the terminal without echo or from standard input."""
    try:
        words: str = typer.prompt("Seed words", hide_input=True) if sys.stdin.isatty() else sys.stdin.read(1000)
    except UnicodeDecodeError:
        raise LocalError("bad_seed_words", "seed words: standard input is no text") from None
    return words


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run the command and give its exit status; what is wrong with the input is told in one line."""
    try:
        status = app(arguments, prog_name="cfdnode", standalone_mode=False)
    except typer.Abort:
        return _complain("ended by the user")
    except typer.TyperException as error:
        return _complain(_usage(error))
    except (LocalError, WorldError) as error:
        return _complain(error.sentence)
    return status if isinstance(status, int) else 0  # typer.Exit comes back as its number


def _complain(line: str) -> int:
    typer.echo(f"cfdnode: {line}", err=True)
    return BAD_INPUT


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    where = context.command_path.removeprefix("cfdnode").strip() if context is not None else ""
    message = error.format_message()
    return f"{where}: {message}" if where else message


def _set_up_logs(level: str, style: str) -> None:
    from node.logs import configure

    configure(level, style)


def _serve(settings: "NodeConfig", module: str) -> None:
    """Run a node with the API's socket, which is bound before anything else begins."""
    from node.start import run_node
    from node.web.sockets import bind_api

    with bind_api(settings.api) as api_socket:
        _set_up_logs(settings.log.level, settings.log.format)
        _until_told_to_end(partial(run_node, module, settings, api_socket))


def _until_told_to_end(main_task: Callable[[], Awaitable[object]]) -> None:
    """Run until the task ends or the first SIGINT or SIGTERM, which ends it in good order; a second one kills."""
    import trio

    from node.causes import leaves
    from protocols.errors import CodedError

    async def until_signal() -> None:
        async with trio.open_nursery() as nursery:

            async def watch(*, task_status: trio.TaskStatus[None]) -> None:
                with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    task_status.started()
                    async for _ in signals:
                        break
                last_call = threading.Timer(LAST_CALL, os._exit, [1])  # a thread that hangs cannot be ended
                last_call.daemon = True
                last_call.start()
                nursery.cancel_scope.cancel("told to end")

            await nursery.start(watch)
            await main_task()
            nursery.cancel_scope.cancel("ended")

    try:
        trio.run(until_signal)
    except ExceptionGroup as group:
        errors = list(leaves(group))
        if all(isinstance(error, CodedError) for error in errors):
            raise errors[0] from None
        raise


def _refuse_if_in_use(data: Path) -> None:
    """Two nodes on one data directory would overwrite each other's wallet and say of each other where the API is."""
    from node.errors import NeedsUser
    from node.eventstore.lock import refuse_if_locked

    try:
        refuse_if_locked(data)
    except NeedsUser as error:
        raise LocalError(error.code, f"{error.sentence}; {error.remedy}") from None


def _in_use(data: Path) -> bool:
    from node.errors import NeedsUser
    from node.eventstore.lock import refuse_if_locked

    try:
        refuse_if_locked(data)
    except NeedsUser:
        return True
    return False


@contextmanager
def _directory_errors(data: Path) -> Iterator[None]:
    from node.errors import NeedsUser

    try:
        yield
    except OSError as error:
        raise LocalError("bad_data_directory", f"{data}: {error.strerror or error}") from None
    except NeedsUser as error:
        raise LocalError(error.code, f"{error.sentence}; {error.remedy}") from None


def _check_config(paths: list[Path], data: Path, network: str, role: str) -> None:
    """Whether the configuration is of the node that the backup is of."""
    from node.config import MakerConfig, TakerConfig, load

    kind = MakerConfig if role == MakerConfig.role else TakerConfig
    settings: NodeConfig = load(kind, paths=paths, flags={"data": str(data)})
    if settings.network != network:
        raise LocalError("other_node", f"the backup is of {network}, the configuration of {settings.network}")


def _node(command: str, data: Path | None, api: str | None, token_file: Path | None) -> tuple[str, str]:
    """Where a node's API is, and its token."""
    if data is None and (api is None or token_file is None):
        raise LocalError("bad_flags", f"{command}: give --data, or --api and --token-file")
    folder = data or Path()
    url = api or _contents(files.url_file(folder), "is the node running?")
    return url, _contents(token_file or files.token_file(folder), "the node writes it on its first start")


def _contents(path: Path, hint: str) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        raise LocalError("no_node", f"{path}: {reason}; {hint}") from None


def _post(data: Path, order_id: str, action: str, said: Mapping[str, object] | None = None) -> Any:
    """What the node that runs on `data` answers to an action on a position."""
    if re.fullmatch(r"[0-9a-f]{32}", order_id) is None:
        raise LocalError("bad_order_id", f"order id {order_id[:80]!r} is not 32 hex digits in lower case")
    url = _contents(files.url_file(data), "is the node running?")
    token = _contents(files.token_file(data), "the node writes it on its first start")
    return _ask("POST", url, f"/api/v1/positions/{order_id}/{action}", token, said)


def _ask(
    method: str,
    url: str,
    path: str,
    token: str,
    said: Mapping[str, object] | None = None,
    *,
    within: float = ANSWERED_WITHIN,
) -> Any:
    """The JSON that the node's API answers with."""
    try:
        place = urlsplit(url)
        hostname, port = place.hostname, place.port or 80
        if not hostname or place.scheme != "http":
            raise ValueError
    except ValueError:
        raise LocalError("bad_flags", f"the API's URL {url!r} is not http://host:port") from None
    try:
        connection = http.client.HTTPConnection(hostname, port, timeout=within)
        try:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            connection.request(method, path, json.dumps(said) if said is not None else None, headers)
            response = connection.getresponse()
            body = json.loads(response.read())
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise WorldError("unreachable", f"{url}: no answer from a node: {error}") from None
    if response.status >= http.HTTPStatus.BAD_REQUEST:
        raise WorldError("unreachable", f"{url}: {body.get('detail', response.reason)}")
    return body
