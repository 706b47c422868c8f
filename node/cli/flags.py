"""Flags that several commands have."""

from pathlib import Path
from typing import Annotated, Any

import typer

from protocols.errors import LocalError


def checked_later(text: str) -> Any:
    """A flag that is checked together with the file and the environment, in `node.config`."""
    return typer.Option(help=text, show_default=False)


Text = str | None
Texts = list[str] | None

# of the commands that run a node, or read its configuration
Files = Annotated[list[Path] | None, typer.Option("--config", help="TOML file; may be repeated, later ones win.")]
Data = Annotated[Text, checked_later("Data directory.")]
BackupPath = Annotated[Text, checked_later("Directory of the backup; best on another disk.")]
Network = Annotated[Text, checked_later("mainnet, signet, testnet4 or regtest.")]
Electrum = Annotated[Texts, checked_later("Electrum server, host:port or ssl://host:port; may be repeated.")]
Api = Annotated[Text, checked_later("127.0.0.1:port of the HTTP API; port 0 lets the system choose.")]
FeeRate = Annotated[Text, checked_later("Satoshis per virtual byte when the chain's estimate says nothing.")]
LogLevel = Annotated[Text, checked_later("debug, info, warning or error.")]
LogFormat = Annotated[Text, checked_later("console or json.")]
Listen = Annotated[Text, checked_later("host:port for takers to connect to.")]
Public = Annotated[Text, checked_later("host:port that takers are told, if it is not --listen.")]

# of the commands that ask a running node
NodeData = Annotated[
    Path | None, typer.Option("--data", help="Data directory of a node of this machine; else CFDNODE_DATA.")
]
NodeApi = Annotated[Text, typer.Option("--api", help="URL of the node's API, if not as in --data.")]
TokenFile = Annotated[Path | None, typer.Option("--token-file", help="File with the API's token, if not in --data.")]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", help="PEM file of the certificate to trust, for --api by https; else CFDNODE_CA."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON value, for programs.")]
Yes = Annotated[bool, typer.Option("--yes", help="Agree beforehand, without being asked.")]
Key = Annotated[Text, typer.Option("--key", help="Idempotency key: the same command again does nothing twice.")]
OrderId = Annotated[str, typer.Argument(help="The position's order id, 32 hex digits.")]


def flags_behind(context: typer.Context, *given: object) -> None:
    """Refuse flags that stand before a subcommand, where they would go unheard."""
    if any(value is not None for value in given):
        name = context.invoked_subcommand
        raise LocalError("bad_flags", f"{context.info_name} {name}: write flags behind {name}")
