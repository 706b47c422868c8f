"""What strikes the services of a running node from within. Production code knows nothing of it: the supervisor's
methods are replaced in the process of a test.

A life is killed by an exception raised beside it. It hangs when nothing that its tasks wait for ever comes back to
them: each task that a life spawns is stepped through `_Held`, which keeps the outcome until the life is ended. It is
slow when every step, and every call of others to it, comes late.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import trio
from attrs import Factory, define

from node.errors import NeedsUser
from node.supervision import Repair, Run, Service, Supervisor
from protocols.errors import WorldError

INJECTED = "injected by a test"
"""In each error that is; bugs that say so are none."""

_service, _call, _run = Supervisor.service, Service.call, Supervisor.run


class InjectedBugError(Exception):
    """What nobody foresaw."""


ERRORS: dict[str, Callable[[], Exception]] = {
    "world": lambda: WorldError("injected", INJECTED),
    "bug": lambda: InjectedBugError(INJECTED),
    "blocked": lambda: NeedsUser(INJECTED, "restart it"),
}


@define(eq=False)
class Life:
    """One life of a service."""

    service: Service[Any]
    hung: bool = False
    delay: float = 0.0
    """Seconds by which each step comes late."""
    ended: trio.Event = Factory(trio.Event)
    _error: Exception | None = None
    _hasty: float | None = None
    _rung: trio.Event = Factory(trio.Event)

    def kill(self, error: Exception) -> None:
        self._error = error
        self._rung.set()

    def hang(self, patience: float | None) -> None:
        """`patience`: what it has left, if it has any; None: as long as in production."""
        self.hung = True
        if patience is not None and self.service.patience < math.inf:
            self._hasty = patience
            self._rung.set()

    async def struck(self) -> None:
        """Runs beside the life; not held itself, so it sees the end of a life that hangs."""
        usual = self.service.patience
        try:
            await self._rung.wait()
            if self._error is None and self._hasty is not None:
                # sooner than the supervisor would, and as it does: whatever still beats belies the work that hangs
                self.service.beat()
                self.service.patience = self._hasty
                await self.service._watch()
        finally:
            self.service.patience = usual
            self.ended.set()
            if self._error is not None:  # even if something that it needs, and that was struck too, ends it already
                raise self._error

    async def pass_on(self) -> None:
        """Returns when what a task of this life waited for may reach it. What was given to it is never lost."""
        with trio.CancelScope(shield=True):
            if self.delay:
                await trio.sleep(self.delay)
            if self.hung:
                await self.ended.wait()


class _Held(Awaitable[Any]):
    """A coroutine that learns what its task's waiting came to when its life lets it."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], life: Life) -> None:
        self._coroutine = coroutine
        self._life = life

    def __await__(self) -> Generator[Any, Any, Any]:
        step, outcome = self._coroutine.send, None
        while True:
            try:
                trap = step(outcome)
            except StopIteration as done:
                return done.value
            try:
                step, outcome = self._coroutine.send, (yield trap)
            except BaseException as error:  # noqa: BLE001  # it is the coroutine's
                step, outcome = self._coroutine.throw, error
            if (self._life.hung or self._life.delay) and not isinstance(outcome, GeneratorExit):
                yield from self._life.pass_on().__await__()


@define(eq=False)
class Faults(trio.abc.Instrument):
    """Of one process."""

    lives: dict[str, Life] = Factory(dict)
    """The present or last one of each service."""
    services: dict[str, Service[Any]] = Factory(dict)
    _of_task: WeakKeyDictionary[trio.lowlevel.Task, Life] = Factory(WeakKeyDictionary)

    # --- around the supervisor ---------------------------------------------------------------------------------------

    def install(self, port_file: Path) -> None:
        """For every node that this process builds; the port to strike by stands in the file."""
        faults = self

        def service(
            supervisor: Supervisor,
            name: str,
            run: Run[Any],
            needs: Sequence[Service[Any]] = (),
            *,
            patience: float | None = None,
            repairs: Sequence[Repair] = (),
            **more: Any,
        ) -> Service[Any]:
            held = faults.around(name, run)
            made = _service(supervisor, name, held, needs, patience=patience, repairs=repairs, **more)
            faults.services[name] = made
            return made

        async def call(service: Service[Any], method: Any, *args: Any, **kwargs: Any) -> Any:
            life = faults.lives.get(service.name)
            if life is not None and (life.hung or life.delay):
                with service.lent():
                    await trio.sleep(math.inf if life.hung else life.delay)
            return await _call(service, method, *args, **kwargs)

        async def run(supervisor: Supervisor, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            async with trio.open_nursery() as nursery:
                trio.lowlevel.add_instrument(faults)
                nursery.start_soon(faults.serve, port_file)
                await _run(supervisor, task_status=task_status)

        for owner, name, ours in ((Supervisor, "service", service), (Supervisor, "run", run), (Service, "call", call)):
            setattr(owner, name, ours)

    def around(self, name: str, run: Run[Any]) -> Run[Any]:
        async def live(*, task_status: trio.TaskStatus[Any]) -> None:
            life = self.lives[name] = Life(self.services[name])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(life.struck)
                await trio.lowlevel.checkpoint()
                self._of_task[trio.lowlevel.current_task()] = life
                await _Held(_coroutine(run(task_status=task_status)), life)
                nursery.cancel_scope.cancel()

        return live

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """A task of a life's tasks is one of that life's."""
        parent = task.parent_nursery.parent_task if task.parent_nursery is not None else None
        life = self._of_task.get(parent) if parent is not None else None
        if life is not None:
            self._of_task[task] = life
            held: Any = _coroutine(_Held(task.coro, life))
            task.coro = held

    # --- the word to strike ------------------------------------------------------------------------------------------

    async def serve(self, port_file: Path) -> None:
        """A line of JSON in, a line of JSON out, on a port of this machine that the file names."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        fresh = port_file.with_suffix(".new")
        fresh.write_text(str(listener.socket.getsockname()[1]))
        fresh.replace(port_file)
        await trio.serve_listeners(self._answer, [listener])

    async def _answer(self, stream: trio.SocketStream) -> None:
        async with stream:
            async for line in _lines(stream):
                try:
                    answer = {"ok": True, **self.strike(**json.loads(line))}
                except (KeyError, TypeError, ValueError) as error:
                    answer = {"ok": False, "error": repr(error)}
                await stream.send_all(json.dumps(answer).encode() + b"\n")

    def strike(
        self,
        do: str,
        services: Sequence[str] = (),
        error: str = "world",
        delay: float = 0.0,
        patience: float | None = None,
    ) -> dict[str, Any]:
        """`do` is kill (`error`: a key of `ERRORS`), hang (`patience`: seconds), slow (`delay`: seconds) or mend, all
        of these services at once; who, which tells; or calm: the pauses before new lives are as if all had been well
        for a minute."""
        lives = [self.lives[name] for name in services]
        if over := [name for name, life in zip(services, lives, strict=True) if life.ended.is_set()]:
            raise ValueError(f"not alive: {over}")
        match do:
            case "who":
                patient = [name for name, service in self.services.items() if service.patience < math.inf]
                return {"patient": patient, "pid": os.getpid()}
            case "calm":
                for service in self.services.values():
                    service._failures = 0
            case "kill":
                for life in lives:
                    life.kill(ERRORS[error]())
            case "hang":
                for life in lives:
                    life.hang(patience)
            case "slow" | "mend":
                for life in lives:
                    life.delay = delay
            case _:
                raise ValueError(do)
        return {}


async def _coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def _lines(stream: trio.SocketStream) -> AsyncIterator[bytes]:
    held = b""
    async for data in stream:
        *whole, held = (held + data).split(b"\n")
        for line in whole:
            yield line
