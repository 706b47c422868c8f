"""Two dialogues against each other in memory: no event loop, every step under the test's hand.

The stream between the two holds one message each way, as a runner that reads one message ahead over an unbuffered
stream does; so two sends in a row from both sides at once deadlock here as they could over a network, and the pair
reports it. All interleavings of two such dialogues give one outcome, so a fault matrix needs no schedules: it is
(steps of the one) × (steps of the other) × (message in flight lost or delivered).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from attrs import define, field

from protocols.codec import Codec, Message
from protocols.dialogue import Ask, Compute, Dialogue, Fact, Persist, Receive, Send, Step, accept, rejection
from protocols.errors import CodedError, LocalError, PeerGone, RemoteError, WorldError

Answer = Callable[[Any], Any]


class Deadlock(AssertionError):
    """Both ends wait for each other."""


@define(eq=False)
class End:
    """One side: its dialogue, what answers its questions, and what came of it."""

    name: str
    dialogue: Dialogue[Any]
    answers: Mapping[type[Ask[Any]], Answer] = field(factory=dict)
    """For each kind of question a function of the question; it may raise."""
    persist: Callable[[Fact], None] = lambda _: None
    """Called with each fact before the dialogue goes on; it may refuse by raising."""
    facts: list[Fact] = field(factory=list)
    sent: list[Message] = field(factory=list)
    trace: list[str] = field(factory=list)
    """The names of the steps taken."""
    result: Any = None
    error: BaseException | None = None
    done: bool = False
    _step: Step[Any] | None = None

    def begin(self) -> None:
        self._advance(partial(self.dialogue.send, None))

    def _advance(self, advance: Callable[[], Step[Any]]) -> None:
        try:
            self._step = advance()
        except StopIteration as stop:
            self.done, self.result, self._step = True, stop.value, None
        except CodedError as error:
            self.done, self.error, self._step = True, error, None

    @property
    def step(self) -> Step[Any] | None:
        """The step that the dialogue waits for."""
        return self._step

    def give(self, value: object) -> None:
        self.trace.append(_describe(self._step))
        self._advance(partial(self.dialogue.send, value))

    def throw(self, error: BaseException) -> None:
        self.trace.append(f"{_describe(self._step)} raised {type(error).__name__}")
        self._advance(partial(self.dialogue.throw, error))

    def crash(self) -> None:
        """The process is gone: the dialogue sees nothing, only what it persisted is left."""
        self.dialogue.close()
        self.done, self._step = True, None
        self.error = self.error or PeerGone("crashed")


def _describe(step: Step[Any] | None) -> str:
    if isinstance(step, Send):
        return f"Send {type(step.message).__name__}"
    if isinstance(step, Persist):
        return f"Persist {type(step.fact).__name__}"
    if isinstance(step, Receive):
        return "Receive " + "|".join(kind.__name__ for kind in step.kinds)
    return type(step).__name__


class Pair:
    """Drives two ends of one protocol; `a` is the opener."""

    def __init__(self, codec: Codec, a: End, b: End) -> None:
        self.codec = codec
        self.a, self.b = a, b
        self._flight: dict[str, deque[bytes]] = {a.name: deque(), b.name: deque()}  # by sender
        self.broken = False
        for end in (a, b):
            end.begin()
            self._announce_end(end)

    def _peer(self, end: End) -> End:
        return self.b if end is self.a else self.a

    def advance(self, end: End) -> bool:
        """Carry out one step of this end; False if it is done or must wait for the other."""
        step = end.step
        if step is None:
            return False
        if isinstance(step, Send):
            return self._send(end, step)
        if isinstance(step, Receive):
            return self._receive(end, step)
        try:
            if isinstance(step, Persist):
                end.persist(step.fact)
                end.facts.append(step.fact)
                result: object = None
            elif isinstance(step, Compute):
                result = step.function(*step.args)
            else:
                assert isinstance(step, Ask), f"{step!r} is no step of a dialogue"
                result = end.answers[type(step)](step)
        except (RemoteError, WorldError, LocalError) as error:
            end.throw(error)
        else:
            end.give(result)
        self._announce_end(end)
        return True

    def _send(self, end: End, step: Send) -> bool:
        if self.broken or self._peer(end).done:
            end.throw(PeerGone())
        elif self._flight[end.name]:
            return False
        else:
            try:
                data = self.codec.encode(step.message)
            except LocalError as error:
                end.throw(error)
            else:
                self._flight[end.name].append(data)
                end.sent.append(step.message)
                end.give(None)
        self._announce_end(end)
        return True

    def _receive(self, end: End, step: Receive[Any]) -> bool:
        flight = self._flight[self._peer(end).name]
        if flight:
            decoder = self.codec.decoder()
            decoder.feed(flight.popleft())
            try:
                message = decoder.next()
                assert message is not None
                accept(step, message)
            except RemoteError as error:
                end.throw(error)
            else:
                end.give(message)
        elif self.broken or self._peer(end).done:
            end.throw(PeerGone())
        else:
            return False
        self._announce_end(end)
        return True

    def _announce_end(self, end: End) -> None:
        """An end that fails tells the other why, as the node's runner does."""
        if end.done and end.error is not None and not self.broken and (reason := rejection(end.error)):
            self._flight[end.name].append(self.codec.encode(reason))

    def run(self) -> tuple[End, End]:
        """Until both are done. Raises Deadlock when neither can go on."""
        while not (self.a.done and self.b.done):
            if not (self.advance(self.a) | self.advance(self.b)):
                raise Deadlock(f"{self.a.name}: {_describe(self.a.step)}; {self.b.name}: {_describe(self.b.step)}")
        return self.a, self.b

    def run_to(self, steps_a: int, steps_b: int) -> bool:
        """Until `a` took `steps_a` steps and `b` took `steps_b`; False if that point does not exist."""
        while True:
            moved = len(self.a.trace) < steps_a and self.advance(self.a)
            moved |= len(self.b.trace) < steps_b and self.advance(self.b)
            if not moved:
                return len(self.a.trace) == steps_a and len(self.b.trace) == steps_b

    def cut(self, *, lost: bool) -> None:
        """Break the stream; what is in flight is lost or still arrives."""
        self.broken = True
        if lost:
            for flight in self._flight.values():
                flight.clear()
