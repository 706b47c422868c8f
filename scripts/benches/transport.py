"""The transport beside what a user would pick instead: TCP and TLS (one connection a dialogue), py-libp2p, gRPC.

Each kind is a server process and a client process on the same two cores, started once; the rounds are interleaved, so
that what slows the machine down for a while slows all of them. What is compared is the ratio in each round: `spread` is
that of the ratios. All run in an environment of their own with what `requirements/bench.txt` pins.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO

from attrs import frozen

from scripts.benches import Figure

ROOT = Path(__file__).parent.parent.parent
OTHERS = {
    "libp2p": "py-libp2p",
    "grpc": "grpcio",
    "grpc-tls": "grpcio by TLS",
    "tls": "trio TLS",
    "tcp": "trio TCP",
    "alone": "without them",
}
"""What ours is beside → its name in the figures. TCP and grpcio do not encrypt."""
KINDS = ("ours", "libp2p", "grpc", "grpc-tls", "tls", "tcp")
PATIENCE = 60
"""Seconds that a measurement may take; the slowest takes fifteen."""


@frozen
class Plan:
    """How often each thing is done in a round."""

    rounds: int = 5
    connects: int = 30
    answers: int = 300
    dialogues: int = 2_000
    """10 000 in five rounds."""
    concurrent: int = 1_000
    pings: int = 200
    held_connections: int = 200
    held_streams: int = 500
    kinds: tuple[str, ...] = KINDS
    one: int = 1
    ten: int = 10
    """Streams of the bulk."""


QUICK = Plan(1, 2, 5, 32, 20, 5, 5, 10, ("ours", "tcp"))
"""Shows that it works, measures nothing; needs no environment of its own."""


class Silent(Exception):
    """Neither an answer nor an end, for `PATIENCE` seconds: some hang at a thousand streams at once."""


@frozen
class _End:
    process: subprocess.Popen[str]
    told: IO[str]
    tells: IO[str]

    def ask(self, name: str, count: int) -> dict[str, float]:
        print(name, count, file=self.told, flush=True)
        return self.heard()

    def heard(self) -> dict[str, float]:
        """The next line of it. Raises Silent if none comes in time."""
        if not select.select([self.tells], [], [], PATIENCE)[0]:  # an answer is one line: nothing of it waits in Python
            raise Silent
        line = self.tells.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with status {self.process.wait()}")
        heard: dict[str, float] = json.loads(line)
        return heard


def quick() -> Iterator[Figure]:
    """A smoke test."""
    return figures(QUICK)


_MEASURED = (
    ("connect", "ms", "connect", "connects", "median", 1e3),
    ("open + first answer, p50", "ms", "first_answer", "answers", "p50", 1e3),
    ("open + first answer, p99", "ms", "first_answer", "answers", "p99", 1e3),
    ("short dialogues", "/s", "dialogues", "dialogues", "rate", 1),
    ("CPU of a short dialogue, both sides", "ms", "dialogues", "dialogues", "cpu", 1e3),
    ("dialogues, all their streams open at once", "/s", "concurrent", "concurrent", "rate", 1),
    ("bulk on 1 stream", "MB/s", "bulk", "one", "rate", 1),
    ("CPU of bulk, both sides", "ms/MB", "bulk", "one", "cpu", 1e3),
    ("bulk on 10 streams", "MB/s", "bulk", "ten", "rate", 1),
    ("bulk on 1 stream, 64 KiB a write", "MB/s", "bulk_in_pieces", "one", "rate", 1),
    ("CPU of bulk, 64 KiB a write, both sides", "ms/MB", "bulk_in_pieces", "one", "cpu", 1e3),
    ("bulk on 10 streams, 64 KiB a write", "MB/s", "bulk_in_pieces", "ten", "rate", 1),
    ("ping under bulk, p50", "ms", "ping_under_load", "pings", "p50", 1e3),
    ("ping under bulk, p99", "ms", "ping_under_load", "pings", "p99", 1e3),
)
"""Name, unit, measurement of `work.Client`, its count in the plan, which of its numbers, and what to multiply it by."""


def figures(plan: Plan | None = None) -> Iterator[Figure]:
    plan = plan or Plan()
    python = sys.executable if plan is QUICK else str(_environment())
    with ExitStack() as stack:
        pairs = {kind: stack.enter_context(_pair(python, kind)) for kind in plan.kinds}
        measured: dict[tuple[str, int], dict[str, list[dict[str, float]]]] = {}
        for name, unit, measurement, of_plan, value, factor in _MEASURED:
            what = measurement, getattr(plan, of_plan)
            if what not in measured:
                rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in pairs}
                for _ in range(plan.rounds):
                    for kind in tuple(rounds):
                        try:
                            rounds[kind].append(_asked(pairs[kind], *what))
                        except Silent:
                            _left_out(kind, *what)
                            del rounds[kind]
                            pairs[kind] = stack.enter_context(_pair(python, kind))
                measured[what] = rounds
            yield from _beside(
                name,
                unit,
                {kind: [each[value] * factor for each in of_kind] for kind, of_kind in measured[what].items()},
            )
        trips = {kind: pair[1].ask("round_trips", 1 if plan is QUICK else 3) for kind, pair in pairs.items()}
        yield from _beside(
            "connect over a slow wire", "round trips", {kind: [heard["connect"]] for kind, heard in trips.items()}
        )
        yield from _beside(
            "open + first answer over a slow wire",
            "round trips",
            {kind: [heard["answer"]] for kind, heard in trips.items()},
        )
    yield from _memory(python, plan)
    yield _crowded(python, plan)


def _beside(name: str, unit: str, rounds: dict[str, list[float]]) -> Iterator[Figure]:
    """One figure for each of the others; `rounds` are the values of each kind, round by round."""
    ours = rounds["ours"]
    for kind, theirs in rounds.items():
        if kind != "ours":
            ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
            median = statistics.median(ratios)
            spread = (max(ratios) - min(ratios)) / median if len(ratios) > 1 else None
            reference = statistics.median(ours) / median  # so that the ratio is the median of the ratios
            yield Figure(name, statistics.median(ours), unit, reference, OTHERS[kind], spread)


def _memory(python: str, plan: Plan) -> Iterator[Figure]:
    """What the server's process grows by, in processes that have done nothing else."""
    for name, measurement, count in (
        ("memory of an idle connection, server", "hold_connections", plan.held_connections),
        ("memory of an idle stream, server", "hold_streams", plan.held_streams),
    ):
        grown: dict[str, list[float]] = {}
        for kind in plan.kinds:
            try:
                grown[kind] = [_grown(python, kind, measurement, count) for _ in range(min(3, plan.rounds))]
            except Silent:
                _left_out(kind, measurement, count)
        yield from _beside(name, "kB", grown)


def _grown(python: str, kind: str, measurement: str, count: int) -> float:
    """kB for each of them."""
    with _pair(python, kind) as (server, client):
        client.ask(measurement, count // 5)  # what is allocated once
        before = _resident(server)
        client.ask(measurement, count)
        # less than a page for each may not show at all
        return max(1.0, _resident(server) - before) / count / 1_000


def _left_out(kind: str, measurement: str, count: int) -> None:
    """One of the others that hangs is told of, and measured in all else; ours must not."""
    if kind == "ours":
        raise RuntimeError(f"{measurement} with {count} hangs")
    print(f"{OTHERS[kind]} hung: {measurement} with {count}, left out", file=sys.stderr)


def _crowded(python: str, plan: Plan) -> Figure:
    """Whether a dialogue costs more when other streams are open."""
    alone: list[float] = []
    crowded: list[float] = []
    with _pair(python, "ours") as (_, client):
        for _ in range(plan.rounds):
            alone.append(client.ask("dialogues", plan.dialogues)["rate"])
            client.ask("hold_streams", 256)
            crowded.append(client.ask("dialogues", plan.dialogues)["rate"])
            client.ask("let_go", 256)
    rounds = {"ours": crowded, "alone": alone}
    return next(_beside("short dialogues beside 256 idle streams", "/s", rounds))


@contextmanager
def _pair(python: str, kind: str) -> Iterator[tuple[_End, _End]]:
    """Server and client, on the first two cores that we may use."""
    with _end(python, kind, "server") as server:
        address = server.heard()
        with _end(python, kind, "client", str(address["port"]), str(address["key"])) as client:
            yield server, client


@contextmanager
def _end(python: str, kind: str, *arguments: str) -> Iterator[_End]:
    process = subprocess.Popen(
        [python, "-m", "scripts.benches._transport", kind, *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            # compiled once: what compiling leaves in the allocator would hide what connections take
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(ROOT / ".cache" / "bytecode"),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[:2])
    with process:
        try:
            yield _End(process, process.stdin, process.stdout)
        finally:
            process.kill()


def _asked(pair: tuple[_End, _End], measurement: str, count: int) -> dict[str, float]:
    """What the client says, and the processor seconds that both took for each unit of its `amount`: unlike all else
    they say little about what else the machine is doing."""
    before = sum(map(_processor, pair))
    heard = pair[1].ask(measurement, count)
    if amount := heard.get("amount"):
        # never less than what the system's clock can tell
        heard["cpu"] = max(0.01, sum(map(_processor, pair)) - before) / amount
    return heard


def _processor(end: _End) -> float:
    """Seconds of all its threads so far, in the kernel too; Linux tells."""
    told = Path(f"/proc/{end.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


def _resident(end: _End) -> float:
    """Bytes in memory; Linux tells."""
    pages = int(Path(f"/proc/{end.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _environment() -> Path:
    """The Python of the environment that has all kinds, which is made if need be."""
    requirements = ROOT / "requirements" / "bench.txt"
    folder = ROOT / ".cache" / "bench"
    python, ready = folder / "bin" / "python", folder / "ready"
    wanted = sha256(requirements.read_bytes()).hexdigest()
    if not ready.is_file() or ready.read_text() != wanted:
        print("Setting up .cache/bench: a minute or two, again only when the requirements change.", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--require-hashes"]
        subprocess.run([*install, "--requirement", str(requirements)], check=True)
        ready.write_text(wanted)
    return python
