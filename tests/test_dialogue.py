"""Steps and the in-memory pair: what a dialogue may rely on, whoever drives it."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import frozen

from protocols.codec import Codec, Message, Rejected
from protocols.dialogue import (
    Ask,
    Compute,
    Dialogue,
    Fact,
    Persist,
    Receive,
    Send,
    accept,
    receive,
    rejection,
)
from protocols.errors import (
    Declined,
    LocalError,
    PeerGone,
    PeerSilent,
    Refused,
    RemoteError,
    RemoteProtocolError,
    WorldError,
)
from protocols.testing import Deadlock, End, Pair


@frozen
class Question(Message):
    text: str


@frozen
class Reply(Message):
    number: int


CODEC = Codec(Question, Reply, limit=100)


@frozen
class Noted(Fact):
    number: int


@frozen
class Look(Ask[int]):
    text: str


def length(text: str) -> int:
    return len(text)


async def asker(text: str) -> int:
    await Send(Question(text))
    reply = await receive(Reply, within=5)
    await Persist(Noted(reply.number))
    return reply.number


async def answerer() -> str:
    question = await receive(Question, within=5)
    number = await Look(question.text) + await Compute(length, (question.text,))
    await Persist(Noted(number))
    await Send(Reply(number))
    return question.text


def pair(a: Dialogue[Any] | None = None, b: Dialogue[Any] | None = None, **answers: Any) -> Pair:
    look = answers.get("look", lambda ask: 100)
    return Pair(CODEC, End("a", a or asker("abc")), End("b", b or answerer(), answers={Look: look}))


def test_two_dialogues_speak_ask_compute_and_remember() -> None:
    a, b = pair().run()
    assert (a.result, b.result) == (103, "abc")
    assert a.facts == b.facts == [Noted(103)]
    assert a.sent == [Question("abc")]
    assert a.trace == ["Send Question", "Receive Reply", "Persist Noted"]
    assert b.trace == ["Receive Question", "Look", "Compute", "Persist Noted", "Send Reply"]


def test_three_sends_in_a_row_from_both_sides_deadlock_and_the_pair_says_where() -> None:
    async def talker(count: int) -> int:
        for number in range(count):
            await Send(Reply(number))
        return sum([(await receive(Reply, within=5)).number for _ in range(count)])

    with pytest.raises(Deadlock, match="a: Send Reply; b: Send Reply"):
        pair(talker(3), talker(3)).run()
    a, b = pair(talker(1), talker(1)).run()  # one is read ahead
    assert (a.result, b.result) == (0, 0)


def test_two_that_wait_for_each_other_deadlock() -> None:
    with pytest.raises(Deadlock, match="a: Receive Question; b: Receive Question"):
        pair(answerer(), answerer()).run()


def test_a_refusal_by_the_peers_word_arrives_as_it_was_said() -> None:
    async def refuser() -> None:
        await receive(Question, within=5)
        raise Declined("too_late", "ask earlier")

    a, b = pair(b=refuser()).run()
    assert isinstance(b.error, Declined)
    assert isinstance(a.error, Refused)
    assert (a.error.code, a.error.sentence) == ("too_late", "ask earlier")
    assert a.facts == []


def test_a_protocol_may_expect_the_rejection_itself() -> None:
    async def prepared() -> str:
        await Send(Question("abc"))
        answer = await receive(Reply, Rejected, within=5)
        return answer.code if isinstance(answer, Rejected) else "accepted"

    async def refuser() -> None:
        await receive(Question, within=5)
        await Send(Rejected("no", "no"))

    a, b = pair(prepared(), refuser()).run()
    assert a.result == "no"
    assert b.error is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RemoteProtocolError("bad_thing", "thing is 5, allowed is 4"), "bad_thing"),
        (PeerSilent("nothing came"), "peer_silent"),
        (WorldError("disk", "cannot write /home/somebody/secret"), "unavailable"),
        (LocalError("no_money", "the wallet holds 5 sat"), "declined"),
        (RuntimeError("a bug"), "declined"),
    ],
)
def test_the_peer_is_told_its_own_faults_and_none_of_our_affairs(error: Exception, code: str) -> None:
    said = rejection(error)
    assert said is not None
    assert said.code == code
    if not isinstance(error, RemoteError):
        assert str(error) not in said.sentence


@pytest.mark.parametrize("error", [PeerGone(), Refused("no", "no")])
def test_a_peer_that_is_gone_or_has_refused_is_told_nothing(error: Exception) -> None:
    assert rejection(error) is None


def test_a_sentence_with_the_peers_own_bytes_can_always_be_sent() -> None:
    said = rejection(RemoteProtocolError("bad_text", "text is \x1b[2J\n" + "x" * 1000))
    assert said is not None
    assert CODEC.encode(said)
    assert said.sentence.isprintable()


def test_an_unexpected_message_ends_it_with_a_reason_on_both_sides() -> None:
    async def confused() -> None:
        await receive(Question, within=5)
        await Send(Question("what?"))
        await receive(Question, within=5)

    a, b = pair(b=confused()).run()
    assert isinstance(a.error, RemoteProtocolError)
    assert str(a.error) == "expected Reply, got Question [unexpected_message]"
    assert isinstance(b.error, Refused)
    assert b.error.code == "unexpected_message"


def test_accept_is_the_rule_of_every_driver() -> None:
    step: Receive[Any] = Receive((Question, Reply), 5)
    accept(step, Reply(1))
    with pytest.raises(Refused, match="not now"):
        accept(step, Rejected("busy", "not now"))
    with pytest.raises(RemoteProtocolError, match="expected Question, got Reply"):
        accept(Receive((Question,), 5), Reply(1))
    accept(Receive((Rejected,), 5), Rejected("busy", "not now"))


@pytest.mark.parametrize("error", [LocalError("full", "no more"), WorldError("disk", "broken")])
def test_a_fact_that_is_refused_is_thrown_in_and_not_remembered(error: Exception) -> None:
    def persist(fact: Fact) -> None:
        raise error

    both = pair()
    both.b.persist = persist
    a, b = both.run()
    assert b.error is error
    assert b.facts == []
    assert isinstance(a.error, Refused)


def test_a_dialogue_may_handle_what_is_thrown_in() -> None:
    async def patient() -> int:
        try:
            return await Look("x")
        except WorldError:
            return -1

    def fails(_: Look) -> int:
        raise WorldError("down", "not there")

    both = Pair(CODEC, End("a", asker("abc")), End("b", patient(), answers={Look: fails}))
    _, b = both.run()
    assert b.result == -1


def test_a_message_that_cannot_be_sent_is_our_own_error() -> None:
    async def verbose() -> None:
        await Send(Question("x" * CODEC.limit))

    a, b = pair(verbose()).run()
    assert isinstance(a.error, LocalError)
    assert a.sent == []
    assert isinstance(b.error, Refused)
    assert b.error.code == "declined"


def test_who_fails_before_its_first_step_says_so_too() -> None:
    async def unwilling() -> None:
        raise Declined("never", "not with you")

    a, _ = pair(b=unwilling()).run()
    assert isinstance(a.error, PeerGone | Refused)
    assert a.facts == []


def test_after_the_peer_is_gone_a_dialogue_may_still_persist() -> None:
    async def leaver() -> None:
        await receive(Question, within=5)

    async def stayer() -> None:
        await Send(Question("abc"))
        try:
            await receive(Reply, within=5)
        except PeerGone:
            await Persist(Noted(0))

    a, _ = pair(stayer(), leaver()).run()
    assert a.facts == [Noted(0)]


@pytest.mark.parametrize("lost", [True, False])
def test_a_cut_loses_what_is_in_flight_or_does_not(lost: bool) -> None:
    both = pair()
    assert both.run_to(1, 0)
    both.cut(lost=lost)
    a, b = both.run()
    assert isinstance(a.error, PeerGone)
    assert b.facts == ([] if lost else [Noted(103)])
    assert isinstance(b.error, PeerGone)


def test_points_that_no_run_reaches_are_not_there() -> None:
    assert not pair().run_to(0, 2)
    assert not pair().run_to(9, 9)


def test_a_crash_is_seen_by_nobody_inside() -> None:
    seen: list[BaseException] = []

    async def careful() -> None:
        try:
            await receive(Question, within=5)
        except Exception as error:
            seen.append(error)
            raise

    both = pair(b=careful())
    both.b.crash()
    a, _ = both.run()
    assert isinstance(a.error, PeerGone)
    assert seen == []


def test_secrets_do_not_show_in_a_computation() -> None:
    assert "abc" not in repr(Compute(length, ("abc",)))
