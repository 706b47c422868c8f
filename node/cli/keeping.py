"""The commands on a data directory: seed words, the page's password, the maker's address, backup and restoring."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node import files
from node.cli import output
from node.cli.client import contents, node_at
from node.cli.flags import Data, Files, Json, Listen, Public
from protocols.errors import LocalError

if TYPE_CHECKING:
    from node.config import NodeConfig


def address(
    *, config: Files = None, data: Data = None, listen: Listen = None, public: Public = None, as_json: Json = False
) -> None:
    """Print the address by which takers reach this maker."""
    from node.config import MakerConfig, load
    from node.network.address import Identity
    from node.wallet.seed import Seed

    flags = {"data": data, "listen": listen, "public": public}
    settings = load(MakerConfig, paths=config or (), flags=flags)
    peer = Identity(Seed.read(settings.seed_file).node_identity()).public
    found = f"{peer}@{settings.public or settings.listen}"
    if as_json:
        output.as_json({"address": found})
    else:
        typer.echo(found)


def backup(
    file: Annotated[Path, typer.Argument(help="File to write; there must be none yet.")],
    *,
    data: Annotated[Path, typer.Option(help="Data directory of a node, which may be running.")],
    as_json: Json = False,
) -> None:
    """Write one sealed file of all positions. With the seed words it restores them on another machine."""
    from node.backup.restore import export
    from node.eventstore.lock import lock_directory
    from node.wallet.seed import Seed

    target = file.absolute()
    if _in_use(data):
        count = node_at("backup", data).post("backup", {"path": str(target)})["positions"]
    else:
        seed = Seed.read(files.seed_file(data))
        with _directory_errors(data), lock_directory(data):
            network = contents(files.network_file(data), "no node ran there yet")
            role = contents(files.role_file(data), "no node ran there yet")
            count = export(files.store_file(data), seed.secret, network, role, target)
    if as_json:
        output.as_json({"positions": count, "file": str(target)})
    else:
        typer.echo(f"{count} positions are in {target}; without the seed words nobody can read it, you neither")


def restore(
    *,
    data: Annotated[Path, typer.Option(help="Data directory to make: empty, or with an imported seed alone.")],
    backup_at: Annotated[Path, typer.Option("--backup", help="The backup's directory, or one file.")],
    config: Files = None,
    skip_damaged: Annotated[bool, typer.Option(help="Restore what can be read, and name what cannot.")] = False,
    as_json: Json = False,
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
    with output.progress(f"reading {backup_at}"):
        found = read_backup(backup_at, seed.secret, skip_damaged=skip_damaged)
    if config:
        _check_config(config, data, found.network, found.role)
    with _directory_errors(data):
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock_directory(data), output.progress("restoring positions"):
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
    if as_json:
        output.as_json(
            {
                "positions": len(restored.positions),
                "role": found.role,
                "network": found.network,
                "passed_over": dict(sorted(restored.damaged.items())),
            }
        )
        return
    for name, why in sorted(restored.damaged.items()):
        typer.echo(f"passed over: {name}: {why}", err=True)
    typer.echo(
        f"{len(restored.positions)} positions of a {found.role} on {found.network} are restored into {data}. They are"
        " recovered: no commit of them is published by itself. Close them together with the peer, or start the node"
        " and wait until the peer force closes."
    )


def seed_new(
    *, data: Annotated[Path, typer.Option(help="Data directory to keep the seed in.")], as_json: Json = False
) -> None:
    """Make, keep and print new seed words. Write them down: they are the only backup of your coins."""
    from node.wallet.seed import Seed

    seed = Seed.generate()
    seed.write(files.seed_file(data))
    if as_json:
        output.as_json({"words": seed.words})
    else:
        typer.echo(seed.words)


def seed_import(data: Annotated[Path, typer.Option(help="Data directory to keep the seed in.")]) -> None:
    """Keep seed words that you have. They are read from the terminal without echo, or from standard input."""
    from node.wallet.seed import Seed

    Seed.from_words(_words()).write(files.seed_file(data))


def password(*, data: Annotated[Path, typer.Option(help="Data directory of a node, which may be running.")]) -> None:
    """Set the password of the page. It is asked for without echo, or read from standard input."""
    from node.web.passwords import set_password

    if sys.stdin.isatty():
        said: str = typer.prompt("New password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        said = _standard_input("password").removesuffix("\n")
    if not data.is_dir():
        raise LocalError(
            "bad_data_directory", f"{data}: there is no such directory; a node makes it on its first start"
        )
    with _directory_errors(data):
        set_password(data, said)


def _words() -> str:
    """Seed words, from the terminal without echo or from standard input."""
    if sys.stdin.isatty():
        words: str = typer.prompt("Seed words", hide_input=True)
        return words
    return _standard_input("seed words")


def _standard_input(what: str) -> str:
    try:
        return sys.stdin.read(2000)
    except UnicodeDecodeError:
        raise LocalError("bad_input", f"{what}: standard input is no text") from None


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
