"""Runs a dialogue (:mod:`protocols.dialogue`) on a substream: the only place where a protocol meets an event loop.

Beside the task that carries out the steps, a second one reads one message ahead: so a megabyte both ways at once
passes over a stream without buffers. A third one sees when the peer gives the substream up, whatever it sent before:
that cancels a question which is still being looked up. Half close ends what can be received and nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import outcome
import structlog
import trio
from attrs import field, frozen

from node.network.connection import Connection
from node.network.endpoint import Handler
from node.network.substream import Substream
from node.workers import in_worker_process
from protocols.codec import Message, Protocol
from protocols.dialogue import Ask, Compute, Dialogue, Fact, Persist, Receive, Send, Step, accept, rejection
from protocols.errors import LocalError, PeerGone, PeerSilent, RemoteError, WorldError

R = TypeVar("R")

log = structlog.get_logger("dialogue")

FAREWELL_WITHIN = 5.0
"""Seconds for the last message and the orderly close; a peer that takes longer has its substream reset."""


async def inline(function: Callable[..., R], args: tuple[object, ...]) -> R:
    """Run it here and now: for the simulator, where no other process may decide the order of things."""
    await trio.lowlevel.checkpoint()
    return function(*args)


async def _refuse_to_persist(fact: Fact) -> None:
    raise LocalError("nothing_to_persist", f"nobody here remembers {type(fact).__name__}")


@frozen
class Host:
    """What a dialogue needs of its node."""

    answers: Mapping[type[Ask[Any]], Callable[[Any], Awaitable[Any]]] = field(factory=dict)
    """For each kind of question an async function of the question."""
    persist: Callable[[Fact], Awaitable[None]] = _refuse_to_persist
    compute: Callable[[Callable[..., Any], tuple[object, ...]], Awaitable[Any]] = in_worker_process


async def converse(stream: trio.abc.HalfCloseableStream, protocol: Protocol, dialogue: Dialogue[R], host: Host) -> R:
    """Run `dialogue` to its end on `stream`, close the stream in order, and return the result.

    Raises what the dialogue raises: RemoteError, WorldError or LocalError; the peer is told the reason
    (:func:`protocols.dialogue.rejection`). When it ends otherwise, by a cancellation or a bug, the dialogue is closed
    and the stream is the caller's to reset, with the code that fits.
    """
    conversation = _Conversation(stream, protocol, host)
    try:
        result: outcome.Maybe[R]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conversation.read_ahead)
            nursery.start_soon(conversation.watch)
            # Unwrapped outside of the nursery, so that errors do not become exception groups.
            result = await conversation.drive(dialogue)
            nursery.cancel_scope.cancel()
        await conversation.take_leave(result)
    finally:
        dialogue.close()
    return result.unwrap()


async def speak(connection: Connection, protocol: Protocol, dialogue: Dialogue[R], host: Host) -> R:
    """Open a substream of its own for `dialogue` and run it there to its end."""
    try:
        substream = await connection.open(protocol.path)
    except BaseException:
        dialogue.close()
        raise
    try:
        return await converse(substream, protocol, dialogue, host)
    finally:
        substream.reset()  # nothing, if it was closed in order


def answering(protocol: Protocol, begin: Callable[[Substream], tuple[Dialogue[object], Host]]) -> Handler:
    """A handler for the endpoint: for each substream of this protocol, the dialogue and host that `begin` gives it.

    What ends a dialogue is logged with both sides' words, and ends nothing else.
    """

    async def handler(substream: Substream) -> None:
        dialogue, host = begin(substream)
        try:
            await converse(substream, protocol, dialogue, host)
        except (RemoteError, WorldError, LocalError) as error:
            log.info(
                "dialogue ended", path=protocol.path, peer=substream.peer.short, code=error.code, reason=error.sentence
            )

    return handler


class _Conversation:
    def __init__(self, stream: trio.abc.HalfCloseableStream, protocol: Protocol, host: Host) -> None:
        self._stream = stream
        self._protocol = protocol
        self._host = host
        self._read, self._inbox = trio.open_memory_channel[outcome.Maybe[Message]](0)
        self._gone: RemoteError | None = None
        self._question: trio.CancelScope | None = None
        self._torn = False
        """Part of a message was sent: nothing may follow it."""

    async def read_ahead(self) -> None:
        decoder = self._protocol.codec.decoder()
        async with self._read:
            while True:
                try:
                    while (message := decoder.next()) is not None:
                        await self._read.send(outcome.Value(message))
                    data = await self._stream.receive_some()
                except trio.BrokenResourceError as error:
                    self._peer_gone(error)
                    return
                except RemoteError as error:
                    await self._read.send(outcome.Error(error))
                    return
                if not data:
                    if not decoder.empty:
                        await self._read.send(outcome.Error(PeerGone("the peer stopped in the middle of a message")))
                    return
                decoder.feed(bytes(data))

    async def watch(self) -> None:
        """The reader cannot tell: it waits behind a message that nobody takes, or has read to the end."""
        if isinstance(self._stream, Substream):
            self._peer_gone(await self._stream.wait_broken())

    def _peer_gone(self, error: Exception) -> None:
        if self._gone is None:
            if isinstance(error, RemoteError) and not isinstance(error, trio.BrokenResourceError):
                self._gone = error  # a refusal: say which
            else:
                self._gone = PeerGone(f"the peer is gone: {error}" if str(error) else "the peer is gone")
        if self._question is not None:
            self._question.cancel()

    async def drive(self, dialogue: Dialogue[R]) -> outcome.Maybe[R]:
        advance: Callable[[], object] = partial(dialogue.send, None)
        while True:
            try:
                step = advance()
            except StopIteration as stop:
                return outcome.Value(stop.value)
            except Exception as error:  # handed on whole, outside of the nursery  # noqa: BLE001
                return outcome.Error(error)
            if not isinstance(step, Step):  # thrown in, for what it awaits may have opened scopes in this task
                advance = partial(dialogue.throw, TypeError(f"{step!r} is no step of a dialogue"))
                continue
            try:
                result = await self._carry_out(step)
            except (RemoteError, WorldError, LocalError) as error:
                advance = partial(dialogue.throw, error)
            else:
                advance = partial(dialogue.send, result)

    async def _carry_out(self, step: Step[Any]) -> Any:
        match step:
            case Send():
                await self._send(step.message)
                return None
            case Receive():
                return await self._receive(step)
            case Persist():
                with trio.CancelScope(shield=True):
                    await self._host.persist(step.fact)
                return None
            case Compute():
                return await self._host.compute(step.function, step.args)
            case Ask():
                return await self._ask(self._host.answers[type(step)](step))
            case _:
                raise TypeError(f"{step!r} is no step of a dialogue")

    async def _send(self, message: Message) -> None:
        data = self._protocol.codec.encode(message)
        try:
            with trio.fail_after(self._protocol.send_within):
                await self._stream.send_all(data)
        except trio.TooSlowError:
            self._torn = True
            raise PeerSilent(f"the peer did not take a message within {self._protocol.send_within:g} s") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._gone or PeerGone(f"the peer is gone: {error}") from error

    async def _receive(self, step: Receive[Any]) -> Message:
        try:
            with trio.fail_after(step.within):
                message = (await self._inbox.receive()).unwrap()
        except trio.EndOfChannel:
            raise self._gone or PeerGone("the peer ended its side before it had answered") from None
        except trio.TooSlowError:
            raise PeerSilent(f"the peer did not answer within {step.within:g} s") from None
        accept(step, message)
        return message

    async def _ask(self, answer: Awaitable[R]) -> R:
        with trio.CancelScope() as self._question:
            if self._gone is not None:
                self._question.cancel()
            return await answer
        self._question = None
        assert self._gone is not None
        raise self._gone

    async def take_leave(self, result: outcome.Maybe[Any]) -> None:
        """Tell the peer why, if there is a reason, and close in order, within a bounded time."""
        if self._torn:
            return  # the caller resets the stream
        with trio.move_on_after(FAREWELL_WITHIN):
            try:
                if isinstance(result, outcome.Error):
                    if not isinstance(result.error, RemoteError | WorldError | LocalError):
                        return  # a bug of ours: the caller resets the stream, the endpoint counts it
                    if (reason := rejection(result.error)) is not None:
                        await self._stream.send_all(self._protocol.codec.encode(reason))
                await self._stream.aclose()
            except (trio.BrokenResourceError, trio.ClosedResourceError, RemoteError):
                pass  # nobody is left to be told
