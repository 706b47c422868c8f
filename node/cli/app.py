"""The command ``cfdnode``: its subcommands, and what its exit status says. What is wrong is one line on stderr."""

from __future__ import annotations

import sys

import typer

from node.cli import acting, deciding, keeping, running, settings, showing
from node.cli.client import OutcomeUnknown
from node.cli.output import BAD_INPUT, UNKNOWN
from protocols.errors import LocalError, WorldError

EPILOG = (
    "Exit status. 0: done. 1: answered, and it is not well: a service is not healthy, an order or close that was waited"
    " for came to nothing. 2: nothing was done: bad input, a refusal, no node. 3: not known: a request may have been"
    " taken, or waiting was ended early; look before you repeat it."
)


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, rich_markup_mode=None, pretty_exceptions_enable=False)


app = typer.Typer(
    name="cfdnode",
    help="A peer-to-peer node for bitcoin-settled contracts for difference.",
    epilog=EPILOG,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (running.maker, running.taker, running.regtest):
    app.command()(command)

app.command()(showing.health)
app.command()(acting.service)
wallet = _group("The wallet: its balance, unless told otherwise.")
wallet.callback(invoke_without_command=True)(showing.wallet)
wallet.command("address")(acting.wallet_address)
wallet.command("coins")(showing.wallet_coins)
wallet.command("transactions")(showing.wallet_transactions)
wallet.command("send")(acting.wallet_send)
app.add_typer(wallet, name="wallet")
offers = _group("Offers: those that there are, unless told otherwise.")
offers.callback(invoke_without_command=True)(showing.offers)
offers.command("set")(acting.offers_set)
offers.command("withdraw")(acting.offers_withdraw)
app.add_typer(offers, name="offers")
requests = _group("What waits for a maker's word: all of it, unless told otherwise.")
requests.callback(invoke_without_command=True)(deciding.requests)
requests.command("accept")(deciding.requests_accept)
requests.command("decline")(deciding.requests_decline)
app.add_typer(requests, name="requests")
policy = _group("What a maker accepts: what is in force, unless told otherwise.")
policy.callback(invoke_without_command=True)(deciding.policy)
policy.command("set")(deciding.policy_set)
policy.command("reset")(deciding.policy_reset)
app.add_typer(policy, name="policy")
rates = _group("A maker's funding rates: those that there are, unless told otherwise.")
rates.callback(invoke_without_command=True)(deciding.rates)
rates.command("set")(deciding.rates_set)
rates.command("withdraw")(deciding.rates_withdraw)
app.add_typer(rates, name="rates")
makers = _group("A taker's makers: the links to them, unless told otherwise.")
makers.callback(invoke_without_command=True)(showing.makers)
makers.command("add")(acting.makers_add)
makers.command("remove")(acting.makers_remove)
app.add_typer(makers, name="makers")
app.command()(acting.order)
app.command()(showing.positions)
app.command()(acting.close)
app.command("force-close")(acting.force_close)
app.command("rollover")(acting.roll_over)

app.command()(keeping.address)
app.command()(keeping.backup)
app.command()(keeping.restore)
seed = _group("The seed words: the one secret of a node.")
seed.command("new")(keeping.seed_new)
seed.command("import")(keeping.seed_import)
app.add_typer(seed, name="seed")
app.command()(keeping.password)
config = _group("Configuration files.")
config.command("init")(settings.init)
config.command("show")(settings.show)
app.add_typer(config, name="config")


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
    except OutcomeUnknown as error:
        return _complain(error.sentence, UNKNOWN)
    except (LocalError, WorldError) as error:
        return _complain(error.sentence)
    return status if isinstance(status, int) else 0  # typer.Exit comes back as its number


def _complain(line: str, status: int = BAD_INPUT) -> int:
    typer.echo(f"cfdnode: {line}", err=True)
    return status


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    where = context.command_path.removeprefix("cfdnode").strip() if context is not None else ""
    message = error.format_message()
    return f"{where}: {message}" if where else message
