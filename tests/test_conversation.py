"""The runner of dialogues: each promise of `node.network.conversation`, on bare streams and on substreams."""

from __future__ import annotations

import gc
import operator
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from attrs import define, frozen

from node.network.conversation import FAREWELL_WITHIN, Host, answering, converse, inline, speak
from node.network.endpoint import Handler
from node.network.errors import Busy, Forbidden, HandlerFailed, StreamReset, UnknownProtocol
from node.network.substream import INTERNAL_ERROR, Substream
from node.workers import in_worker_process, keep_warm
from protocols.codec import Codec, Message, Protocol
from protocols.contract.keys import check_revocation
from protocols.dialogue import Ask, Compute, Dialogue, Fact, Persist, Send, receive
from protocols.errors import (
    Declined,
    LocalError,
    PeerGone,
    PeerSilent,
    Refused,
    RemoteProtocolError,
    WorldError,
)
from tests.endpoints import Joined, joined

MEGABYTE = 1 << 20


@frozen
class Parcel(Message):
    data: bytes = b""


@frozen
class Noted(Fact):
    text: str


@frozen
class Look(Ask[str]):
    pass


PROTOCOL = Protocol("/cfd/talk/1", Codec(Parcel, limit=MEGABYTE + 100), send_within=60)


async def says(data: bytes) -> None:
    await Send(Parcel(data))


async def hears(within: float = 5) -> bytes:
    return (await receive(Parcel, within=within)).data


async def looks() -> str:
    return await Look()


async def echoes() -> None:
    await says(await hears())


async def asks(data: bytes) -> bytes:
    await says(data)
    return await hears()


def host(**more: Any) -> Host:
    return Host(compute=inline, **more)


@define
class Memory:
    """What was persisted."""

    facts: list[Fact]

    async def persist(self, fact: Fact) -> None:
        await trio.sleep(1)
        self.facts.append(fact)


async def both(
    a: Dialogue[Any], b: Dialogue[Any], host_a: Host | None = None, host_b: Host | None = None
) -> tuple[outcome.Maybe[Any], outcome.Maybe[Any]]:
    """Two dialogues over a stream that buffers nothing: what came of each."""
    streams = trio.testing.lockstep_stream_pair()
    results: dict[int, outcome.Maybe[Any]] = {}

    async def run(index: int, dialogue: Dialogue[Any], host: Host) -> None:
        results[index] = await outcome.acapture(converse, streams[index], PROTOCOL, dialogue, host)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, 0, a, host_a or host())
        nursery.start_soon(run, 1, b, host_b or host())
    return results[0], results[1]


def failure(result: outcome.Maybe[Any]) -> BaseException:
    assert isinstance(result, outcome.Error)
    return result.error


@asynccontextmanager
async def answered(dialogue: Callable[[], Dialogue[Any]], host: Host) -> AsyncIterator[Joined]:
    """Two endpoints; the maker answers by this dialogue."""
    async with joined({PROTOCOL.path: answering(PROTOCOL, lambda _: (dialogue(), host))}) as pair:
        yield pair


# --- over a stream without buffers ------------------------------------------------------------------------------------


async def test_a_question_and_its_answer(autojump_clock: trio.testing.MockClock) -> None:
    a, b = await both(asks(b"hello"), echoes())
    assert a.unwrap() == b"hello"
    assert b.unwrap() is None


async def test_a_megabyte_both_ways_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """One message is read ahead, so that neither side waits for the other to have sent."""

    async def trade(data: bytes) -> bytes:
        await Send(Parcel(data))
        return await hears()

    a, b = await both(trade(b"a" * MEGABYTE), trade(b"b" * MEGABYTE))
    assert a.unwrap() == b"b" * MEGABYTE
    assert b.unwrap() == b"a" * MEGABYTE


async def test_who_only_sends_is_found_out(autojump_clock: trio.testing.MockClock) -> None:
    async def talker() -> None:
        for _ in range(3):
            await says(bytes(1000))

    a, b = await both(talker(), talker())
    for result in (a, b):
        assert isinstance(failure(result), PeerSilent | PeerGone)
    assert trio.current_time() <= PROTOCOL.send_within + FAREWELL_WITHIN


async def test_a_silent_peer_is_waited_for_as_long_as_the_protocol_says(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def mute() -> None:
        await Look()

    async def look(_: Look) -> str:
        await trio.sleep(7)
        return ""

    a, _ = await both(hears(within=5), mute(), host_b=host(answers={Look: look}))
    error = failure(a)
    assert isinstance(error, PeerSilent)
    assert "5 s" in error.sentence


async def test_a_peer_that_reads_nothing_cannot_keep_our_farewell(autojump_clock: trio.testing.MockClock) -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()

    async def fails() -> None:
        raise Declined("no", "no")

    with pytest.raises(Declined):
        await converse(ours, PROTOCOL, fails(), host())
    assert trio.current_time() == FAREWELL_WITHIN


async def test_malformed_bytes_end_the_dialogue_with_a_reason_on_both_sides(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    said = bytearray()

    async def liar() -> None:
        await theirs.send_all(b"\x81\xa4type\xa6parcem")
        while data := await theirs.receive_some():
            said.extend(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(liar)
        with pytest.raises(RemoteProtocolError, match="unknown message type 'parcem'"):
            await converse(ours, PROTOCOL, hears(), host())
    decoder = PROTOCOL.codec.decoder()
    decoder.feed(bytes(said))
    message = decoder.next()
    assert getattr(message, "code", None) == "malformed"


async def test_an_end_in_the_middle_of_a_message_is_no_end(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()

    async def stops() -> None:
        await theirs.send_all(PROTOCOL.codec.encode(Parcel(b"abc"))[:-1])
        await theirs.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stops)
        with pytest.raises(PeerGone, match="in the middle of a message"):
            await converse(ours, PROTOCOL, hears(), host())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Declined("too_small", "quantity is 5, at least 100"), "too_small"),
        (RemoteProtocolError("bad_point", "publish is 00"), "bad_point"),
        (WorldError("disk_full", "cannot write"), "unavailable"),
        (LocalError("no_money", "the wallet holds 5 sat"), "declined"),
    ],
)
async def test_the_peer_is_told_the_reason(autojump_clock: trio.testing.MockClock, error: Exception, code: str) -> None:
    async def fails() -> None:
        await hears()
        raise error

    a, b = await both(asks(b""), fails())
    assert failure(b) is error
    told = failure(a)
    assert isinstance(told, Refused)
    assert told.code == code


async def test_what_an_answer_or_a_record_raises_is_thrown_in(autojump_clock: trio.testing.MockClock) -> None:
    caught = []

    async def careful() -> None:
        for step in (Look(), Persist(Noted("x"))):
            try:
                await step
            except (WorldError, LocalError) as error:
                caught.append(error.code)

    async def look(_: Look) -> str:
        raise WorldError("down", "the chain is away")

    (a, _) = await both(careful(), says(b""), host_a=host(answers={Look: look}))
    assert a.unwrap() is None
    assert caught == ["down", "nothing_to_persist"]


async def test_what_is_no_step_is_a_bug(autojump_clock: trio.testing.MockClock) -> None:
    async def forgets() -> None:
        await trio.sleep(1)

    ours, _theirs = trio.testing.lockstep_stream_pair()
    with pytest.raises(TypeError, match="is no step of a dialogue"):
        await converse(ours, PROTOCOL, forgets(), host())


async def test_half_close_cancels_no_question(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever has said all it wants to say still waits for the answer."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    heard = bytearray()

    async def asker() -> None:
        await theirs.send_eof()
        while data := await theirs.receive_some():
            heard.extend(data)

    async def answerer() -> None:
        await Send(Parcel((await Look()).encode()))

    async def look(_: Look) -> str:
        await trio.sleep(10)
        return "found"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asker)
        await converse(ours, PROTOCOL, answerer(), host(answers={Look: look}))
    assert bytes(heard) == PROTOCOL.codec.encode(Parcel(b"found"))


# --- cancellation -----------------------------------------------------------------------------------------------------


async def test_persist_is_never_cancelled_half_way(autojump_clock: trio.testing.MockClock) -> None:
    memory, after = Memory([]), []

    async def keeper() -> None:
        await Persist(Noted("kept"))
        after.append("ran on")
        await says(b"")
        after.append("sent")

    ours, _theirs = trio.testing.lockstep_stream_pair()
    with trio.move_on_after(0.5) as scope:
        await converse(ours, PROTOCOL, keeper(), host(persist=memory.persist))
    assert scope.cancelled_caught
    assert trio.current_time() == 1
    assert memory.facts == [Noted("kept")]
    assert after == ["ran on"]


async def test_a_cancelled_dialogue_is_closed_and_sees_no_cancellation(
    autojump_clock: trio.testing.MockClock,
) -> None:
    seen: list[type[BaseException]] = []

    async def waits() -> None:
        try:
            await hears(within=60)
        except BaseException as error:
            seen.append(type(error))
            raise

    ours, _theirs = trio.testing.lockstep_stream_pair()
    with trio.move_on_after(1):
        await converse(ours, PROTOCOL, waits(), host())
    assert seen == [GeneratorExit]


# --- between endpoints ------------------------------------------------------------------------------------------------


async def leaves_by_reset(stream: Substream) -> None:
    stream.reset()


async def leaves_in_order(stream: Substream) -> None:
    await stream.aclose()


async def leaves_behind_a_message(stream: Substream) -> None:
    await stream.send_all(PROTOCOL.codec.encode(Parcel(b"nobody takes this")))
    stream.reset()


async def leaves_behind_nonsense(stream: Substream) -> None:
    await stream.send_all(b"\xc1")
    await stream.aclose()


async def leaves_with_the_connection(stream: Substream) -> None:
    await stream.send_eof()
    await stream.connection.aclose()


@pytest.mark.parametrize(
    "leave",
    [
        leaves_by_reset,
        leaves_in_order,
        leaves_behind_a_message,
        leaves_behind_nonsense,
        leaves_with_the_connection,
    ],
)
async def test_a_peer_that_is_gone_cancels_a_question_after_which_persist_still_works(
    autojump_clock: trio.testing.MockClock, leave: Callable[[Substream], Awaitable[None]]
) -> None:
    memory, asked, ended = Memory([]), trio.Event(), trio.Event()
    caught: list[str] = []

    async def patient() -> None:
        try:
            await Look()
        except PeerGone as error:
            caught.append(error.code)
            await Persist(Noted("the peer left"))
            ended.set()
            raise

    async def for_ever(_: Look) -> str:
        asked.set()
        await trio.sleep_forever()
        raise AssertionError

    patience = Host(answers={Look: for_ever}, persist=memory.persist)
    async with answered(patient, patience) as pair:
        stream = await pair.at_taker.open(PROTOCOL.path)
        with trio.fail_after(20):
            await asked.wait()
            await leave(stream)
            await ended.wait()
        assert caught == ["peer_gone"]
        assert memory.facts == [Noted("the peer left")]
        assert pair.maker.crashes == 0


async def test_half_close_of_a_substream_cancels_no_question(autojump_clock: trio.testing.MockClock) -> None:
    async def look(_: Look) -> str:
        await trio.sleep(10)
        return "found"

    async def answerer() -> None:
        await says((await Look()).encode())

    async with answered(answerer, Host(answers={Look: look})) as pair:
        stream = await pair.at_taker.open(PROTOCOL.path)
        await stream.send_eof()
        assert await stream.receive_some() == PROTOCOL.codec.encode(Parcel(b"found"))
        await stream.aclose()


async def test_a_computation_goes_on_when_the_peer_has_left(autojump_clock: trio.testing.MockClock) -> None:
    """It may be what is left to do with the peer's last message; and whoever resets streams kills no workers."""

    async def parting() -> None:
        await says(b"4")

    async def compute(function: Callable[..., Any], args: tuple[object, ...]) -> Any:
        await trio.sleep(10)
        return function(*args)

    memory = Memory([])

    async def thorough() -> str:
        product: int = await Compute(operator.mul, (int(await hears()), 2))
        await Persist(Noted(str(product)))
        return str(product)

    async with answered(parting, Host()) as pair:
        assert await speak(pair.at_taker, PROTOCOL, thorough(), Host(persist=memory.persist, compute=compute)) == "8"
        assert memory.facts == [Noted("8")]


async def test_what_arrived_before_the_peer_left_is_still_received(autojump_clock: trio.testing.MockClock) -> None:
    async def hurries() -> None:
        await says(b"one")
        await says(b"two")

    async def slow() -> tuple[bytes, bytes]:
        first = await hears()
        await Persist(Noted("first"))
        return first, await hears()

    async with answered(hurries, Host()) as pair:
        heard = await speak(pair.at_taker, PROTOCOL, slow(), Host(persist=Memory([]).persist))
        assert heard == (b"one", b"two")


async def test_a_connection_that_is_lost_is_a_peer_that_is_gone(autojump_clock: trio.testing.MockClock) -> None:
    async def waits(_: Look) -> str:
        await trio.sleep_forever()
        raise AssertionError

    async with answered(looks, Host(answers={Look: waits})) as pair, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            await trio.sleep(1)
            await pair.at_maker.aclose()

        with pytest.raises(PeerGone, match="connection is lost"):
            await speak(pair.at_taker, PROTOCOL, hears(), Host())


@pytest.mark.parametrize("opening", [lambda: asks(b"x"), hears, looks], ids=["sends", "receives", "asks"])
@pytest.mark.parametrize(
    ("status", "expected"), [(404, UnknownProtocol), (429, Busy), (403, Forbidden)], ids=["404", "429", "403"]
)
async def test_a_refusal_is_typed_at_the_opener_whatever_it_does_first(
    autojump_clock: trio.testing.MockClock,
    opening: Callable[[], Dialogue[Any]],
    status: int,
    expected: type[Exception],
) -> None:
    from node.network.errors import Refuse

    async def for_ever(_: Look) -> str:
        await trio.sleep_forever()
        raise AssertionError

    async def refuses(stream: Substream) -> None:
        raise Refuse(status, retry_after=30)

    handlers: dict[str, Handler] = {} if status == 404 else {PROTOCOL.path: refuses}
    async with joined(handlers) as pair:
        with pytest.raises(expected) as refused, trio.fail_after(20):
            await speak(pair.at_taker, PROTOCOL, opening(), Host(answers={Look: for_ever}))
        if isinstance(refused.value, Busy):
            assert refused.value.retry_after == 30
        assert not pair.at_taker.closed
        assert pair.maker.crashes == 0


async def test_a_crash_before_the_first_answer_is_500(autojump_clock: trio.testing.MockClock) -> None:
    async def crashes() -> None:
        await hears()
        raise ZeroDivisionError

    async with answered(crashes, Host()) as pair:
        with pytest.raises(HandlerFailed):
            await speak(pair.at_taker, PROTOCOL, asks(b""), Host())
        assert pair.maker.crashes == 1
        assert not pair.at_taker.closed


async def test_a_crash_after_it_is_a_reset_with_internal_error(autojump_clock: trio.testing.MockClock) -> None:
    async def crashes() -> None:
        await echoes()
        await Look()  # nobody answers that: a bug of the host

    async with answered(crashes, Host()) as pair:
        stream = await pair.at_taker.open(PROTOCOL.path)
        data = PROTOCOL.codec.encode(Parcel(b"x"))
        await stream.send_all(data)
        assert await stream.receive_some() == data
        with pytest.raises(StreamReset) as told:
            await stream.receive_some()
        assert told.value.reset_code == INTERNAL_ERROR
        assert pair.maker.crashes == 1


async def test_a_crashed_opener_resets_and_the_listener_lives(autojump_clock: trio.testing.MockClock) -> None:
    async def crashes() -> None:
        await says(b"x")
        raise ZeroDivisionError

    memory = Memory([])

    async def listener() -> None:
        await hears()
        try:
            await hears()
        except PeerGone:
            await Persist(Noted("gone"))

    async with answered(listener, Host(persist=memory.persist)) as pair:
        with pytest.raises(ZeroDivisionError):
            await speak(pair.at_taker, PROTOCOL, crashes(), Host())
        await trio.sleep(2)
        assert memory.facts == [Noted("gone")]
        assert pair.maker.crashes == 0


async def test_a_dialogue_that_ends_with_a_reason_is_no_crash(autojump_clock: trio.testing.MockClock) -> None:
    async def declines() -> None:
        await hears()
        raise Declined("closed_today", "come back tomorrow")

    async with answered(declines, Host()) as pair:
        for _ in range(3):
            with pytest.raises(Refused) as refused:
                await speak(pair.at_taker, PROTOCOL, asks(b""), Host())
            assert refused.value.code == "closed_today"
        assert pair.maker.crashes == 0
        await trio.sleep(1)
        assert pair.at_taker.substreams == pair.at_maker.substreams == ()


async def test_a_cancelled_speaker_resets_its_substream(autojump_clock: trio.testing.MockClock) -> None:
    memory = Memory([])

    async def listener() -> None:
        try:
            await hears(within=60)
        except PeerGone as gone:
            await Persist(Noted(gone.sentence))

    async with answered(listener, Host(persist=memory.persist)) as pair:
        with trio.move_on_after(1):
            await speak(pair.at_taker, PROTOCOL, hears(within=60), Host())
        await trio.sleep(2)
        assert memory.facts == [Noted("the peer is gone: the peer reset the stream (CANCEL) [stream_reset]")]


async def test_a_dialogue_whose_connection_is_gone_already_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    async with joined() as pair:
        await pair.at_taker.aclose()
        dialogue = hears()
        with pytest.raises(LocalError, match="closed on this side"):
            await speak(pair.at_taker, PROTOCOL, dialogue, Host())
        with pytest.raises(RuntimeError, match="cannot reuse"):
            dialogue.send(None)


# --- work for other processes -----------------------------------------------------------------------------------------


async def test_a_computation_runs_in_another_process_and_its_refusal_comes_back() -> None:
    async def heavy() -> tuple[int, int]:
        product = await Compute(operator.mul, (6, 7))
        elsewhere = await Compute(os.getpid, ())
        return product, elsewhere

    ours, theirs = trio.testing.memory_stream_pair()
    product, elsewhere = await converse(ours, PROTOCOL, heavy(), Host())
    assert product == 42
    assert elsewhere != os.getpid()
    await theirs.aclose()

    async def refused() -> None:
        await Compute(check_revocation, (bytes(33), bytes(32)))

    ours, theirs = trio.testing.memory_stream_pair()
    with pytest.raises(RemoteProtocolError) as told:
        await converse(ours, PROTOCOL, refused(), Host())
    assert told.value.code == "bad_revocation"


async def test_a_worker_that_dies_is_the_worlds_fault_and_is_replaced() -> None:
    with pytest.raises(WorldError, match="worker processes die"):
        await in_worker_process(os._exit, (3,))
    assert await in_worker_process(operator.add, (1, 2)) == 3


async def test_a_node_that_ends_while_its_first_worker_starts_leaves_no_process() -> None:
    with trio.move_on_after(0.05):
        await keep_warm()
    gc.collect()  # a process that nobody ended says so here, and warnings are errors
