"""The commands that run: a maker, a taker, a regtest world; until they are told to end."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.flags import (
    Api,
    BackupPath,
    Data,
    Electrum,
    FeeRate,
    Files,
    Listen,
    LogFormat,
    LogLevel,
    Network,
    Public,
    Text,
    Texts,
    checked_later,
)
from protocols.errors import LocalError

if TYPE_CHECKING:
    from node.config import NodeConfig

LAST_CALL = 8.0
"""Seconds after the signal to end at which the process ends, whatever hangs: what matters is on disk."""


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
    accept: Annotated[Text, checked_later("auto or manual: who answers orders, rollovers and closes.")] = None,
    lot: Annotated[Text, checked_later("Quantities are multiples of this many contracts.")] = None,
    leverages: Annotated[Text, checked_later("What takers may choose, separated by commas.")] = None,
    max_quantity: Annotated[Text, checked_later("Largest order, in contracts.")] = None,
    max_exposure: Annotated[Text, checked_later("Largest exposure over all positions, in contracts.")] = None,
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


def taker(
    *,
    config: Files = None,
    data: Data = None,
    network: Network = None,
    backup: BackupPath = None,
    electrum: Electrum = None,
    api: Api = None,
    makers: Annotated[Texts, checked_later("A maker's address, <64 hex digits>@host:port; may be repeated.")] = None,
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


def regtest(
    *,
    config: Files = None,
    data: Data = None,
    hour: Annotated[Text, checked_later("Seconds that an hour takes.")] = None,
    prices: Annotated[Text, checked_later("File with the price path.")] = None,
    seed: Annotated[Text, checked_later("Seed of the random walk, when there is no file.")] = None,
    electrum_port: Annotated[Text, checked_later("Port of the Electrum server; 0 lets the system choose.")] = None,
    oracle_port: Annotated[Text, checked_later("Port of the oracle.")] = None,
    exchange_port: Annotated[Text, checked_later("Port of the exchange.")] = None,
    control_port: Annotated[Text, checked_later("Port of the control.")] = None,
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
    set_up_logs(settings.log.level, settings.log.format)
    try:
        from node.regtest.world import run_world
    except ModuleNotFoundError as error:
        if error.name != "pbk":
            raise
        raise LocalError("no_regtest", "regtest needs the extra: pip install 'cfdnode[demo]'") from None
    until_told_to_end(partial(run_world, settings))


def set_up_logs(level: str, style: str) -> None:
    from node.logs import configure

    configure(level, style)


def _serve(settings: NodeConfig, module: str) -> None:
    """Run a node with the API's socket, which is bound before anything else begins."""
    gc.disable()  # see _keep_for_good
    from node.start import run_node
    from node.web.sockets import bind_api

    with bind_api(settings.api) as api_socket:
        set_up_logs(settings.log.level, settings.log.format)
        until_told_to_end(partial(run_node, module, settings, api_socket, started=_keep_for_good))


def _keep_for_good() -> None:
    """Spare what is alive now, modules and positions, every later search for cycles.

    With 1 000 positions a search through all takes 0.3 s in which nothing else runs, and it came every few seconds,
    often at a start. What is spared is freed as anything else is, unless it is in a cycle: there it stays.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def until_told_to_end(main_task: Callable[[], Awaitable[object]]) -> None:
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
