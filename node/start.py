"""The start of a node, in two stages: first the page, then everything else behind it.

The first stage imports and needs nothing but the web server: it answers while the rest is imported and built, and when
the data directory cannot be opened it says why, and what the user can do. The same server then lets the whole API in.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import structlog
import trio
from attrs import Factory, define

from node import files
from node.causes import describe
from node.clock import Clock
from node.errors import NeedsUser
from node.health import Report, State
from node.supervision import Service, Supervisor
from node.web.sockets import url_of
from protocols.errors import LocalError

if TYPE_CHECKING:
    from node.config import NodeConfig
    from node.wallet.seed import Seed
    from node.web.door import Door, Make

LOOK_AGAIN = 2.0
"""Seconds between looks at a data directory that cannot be opened: what is put right needs no word of the user."""
WHOLE_WITHIN = 60.0
"""Seconds after which a start is over even if a service is not up: its world may be away for days."""
API_PATIENCE = 60.0
"""Seconds without an answer to ourselves after which the web server begins anew."""

REMEDIES = {
    "seed_lost": "put the file back, or import the words with `cfdnode seed import`; the node goes on by itself",
    "seed_exposed": "make the file readable by you alone (chmod 600); the node goes on by itself",
    "bad_seed_words": "move the file away and import the words with `cfdnode seed import`; the node goes on by itself",
    "seed_unreadable": "make the file readable by this user; the node goes on by itself",
    "seed_unwritable": "make the directory writable and see to free space; the node goes on by itself",
    "bad_data_directory": "make the directory writable and see to free space; the node goes on by itself",
    "data_of_another_network": "start the node with a data directory of its own (--data)",
    "data_of_another_role": "start the node with a data directory of its own (--data)",
}

log = structlog.get_logger("node")


@define(eq=False)
class Stage:
    """What the first stage made, and the second builds on."""

    supervisor: Supervisor
    clock: Clock
    door: Door | None = None
    seed: Seed | None = None
    """Once the data directory is open."""
    warnings: list[str] = Factory(list)
    """What the user must know although no service is unwell."""

    def serve(self, config: NodeConfig, listener: socket.socket, rest: Make | None = None) -> None:
        """The API as the first service; `rest` is called for the routers of the whole node, if they are there yet."""
        door: Door

        async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
            from node.web.server import run_door

            await run_door(door, listener, report=report, task_status=task_status)

        from node.web.door import Door

        door = self.door = Door(
            config.data,
            listener=listener,
            supervisor=self.supervisor,
            clock=self.clock,
            warnings=self.warnings,
            rest=rest,
            web=config.web,
        )
        self.supervisor.reporting("api", run, patience=API_PATIENCE)


async def run_node(
    module: str, config: NodeConfig, api_socket: socket.socket, *, started: Callable[[], None] = lambda: None
) -> None:
    """Run a node until cancelled; `started` is called once all services are up, or a minute has passed.

    `module` (``node.maker`` or ``node.taker``) takes a second to import, which is done in a thread; its function
    `build_behind` adds the services behind the data directory to the supervisor, and lets the routers in at the door.
    """
    clock = config.make_clock()
    stage = Stage(Supervisor(clock=clock), clock)
    stage.serve(config, api_socket)
    log.info("node", api=url_of(api_socket, tls=config.web.cert is not None), data=str(config.data))
    built: list[str | None] = []

    async def run_data(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        # imports are not abandoned, and hold up nothing but the end of the process
        assert stage.door is not None
        await trio.to_thread.run_sync(import_module, "node.web.health_api")
        stage.door.let_in_services()
        seams = await trio.to_thread.run_sync(import_module, "node.seams")
        if stage.seed is None:
            new = not files.seed_file(config.data).exists()
            try:
                stage.seed = await trio.to_thread.run_sync(seams.open_data_directory, config)
            except LocalError as error:
                remedy = REMEDIES.get(error.code, "put it right; the node goes on by itself")
                raise NeedsUser(error.sentence, remedy, code=error.code) from error
            if new:
                stage.warnings.append("a new seed was made: write its words down, they are the only backup of coins")
        if not built:
            role = await trio.to_thread.run_sync(import_module, module)
            built.append(None)
            try:
                role.build_behind(config, stage)
            except Exception as error:
                built[0] = describe(error)  # half of the services are there, and go on: nothing is built twice
                log.exception("bug in building the node")
        if built[0] is not None:
            remedy = "end the node and start it again; if that changes nothing, report the log"
            raise NeedsUser(f"the node is not whole: {built[0]}", remedy, code="not_whole")
        task_status.started()
        await _keep_looking(config, report)

    data = stage.supervisor.reporting("data", run_data)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.supervisor.run)
        nursery.start_soon(_look_again, data, stage, config)
        with trio.move_on_after(WHOLE_WITHIN):
            await _all_up(stage.supervisor)
        started()


async def _all_up(supervisor: Supervisor) -> None:
    async with aclosing(supervisor.changes()) as changes:
        async for those in changes:
            if all(each.up for each in those):  # `data` is not, before all the others are there
                return


async def _keep_looking(config: NodeConfig, report: Report) -> NoReturn:
    """See whether the data directory goes on answering: a disk can be pulled out, or hang."""
    seed = files.seed_file(config.data)
    while True:
        if await trio.to_thread.run_sync(seed.exists):
            report.recovered()
        else:
            report.degraded(f"{seed} is gone", "put it back: the node goes on, but could not be started again")
        report.beat()
        await trio.sleep(report.beat_every)


async def _look_again(data: Service[None], stage: Stage, config: NodeConfig) -> None:
    """Begin `data` anew as soon as what blocked it is gone."""
    while stage.seed is None:
        if data.state is State.BLOCKED and await trio.to_thread.run_sync(partial(_opens, config)):
            data.restart()
        await trio.sleep(LOOK_AGAIN)


def _opens(config: NodeConfig) -> bool:
    from node.seams import open_data_directory

    try:
        open_data_directory(config)
    except LocalError:
        return False
    return True
