"""What a seed says shall happen to two nodes that trade: who is killed, during what, at which moment of it."""

from __future__ import annotations

import random
from typing import Literal

from attrs import frozen

Victim = Literal["maker", "taker", "both"]
Scene = Literal["setup", "rollover", "close", "force close", "settlement"]

SCENES: tuple[Scene, ...] = ("setup", "setup", "setup", "rollover", "rollover", "close", "force close", "settlement")
"""Of one story: a kill during each. Setups have the most different moments."""
DOWN = 3.0
"""Seconds for which a killed node stays away at most."""
SIGNING = 0.25
"""Of kills during setups, how many come when the lock is half signed: chance alone seldom meets that moment."""
BOTH = 0.15
"""How many kills take both nodes at once, as a power cut that they share."""
AGAIN = 0.2
"""How many are followed by another one while the node starts."""
STARTING = 1.5
"""Seconds after its start in which that one comes."""


@frozen
class Kill:
    """When somebody is killed, as drawn: `moment` is the part of the scene's time that has passed."""

    scene: Scene
    victim: Victim
    moment: float
    down: float
    """Seconds until it is started again."""
    signing: bool = False
    """During a setup, whatever the moment: once the taker has signed the lock, and before the maker has, if we can."""
    again: float | None = None
    """Seconds after its start at which it is killed once more."""

    @classmethod
    def drawn(cls, draw: random.Random, scene: Scene) -> Kill:
        victims: tuple[Victim, Victim] = ("maker", "taker")
        return cls(
            scene,
            "both" if draw.random() < BOTH else draw.choice(victims),
            draw.random(),
            draw.uniform(0, DOWN),
            signing=scene == "setup" and draw.random() < SIGNING,
            again=draw.uniform(0, STARTING) if draw.random() < AGAIN else None,
        )


@frozen
class Plan:
    """What becomes of it depends on the machine, too."""

    seed: int
    kills: tuple[Kill, ...]
    """In the order of their scenes."""
    together: bool
    """Whether commits are spent together; else by the CET, once its lock has ended."""

    @classmethod
    def drawn(cls, seed: int, kills: int = len(SCENES)) -> Plan:
        draw = random.Random(seed)
        scenes = [SCENES[n % len(SCENES)] for n in range(kills)]
        struck = [Kill.drawn(draw, scene) for scene in scenes]
        order = {scene: n for n, scene in enumerate(dict.fromkeys(SCENES))}
        return cls(seed, tuple(sorted(struck, key=lambda kill: (order[kill.scene], kill.moment))), draw.random() < 0.5)

    def during(self, *scenes: Scene) -> tuple[Kill, ...]:
        return tuple(kill for kill in self.kills if kill.scene in scenes)


def plans_for(kills: int, seed: int) -> list[Plan]:
    """One for each seed from `seed` on, until there are so many kills."""
    starts = range(0, kills, len(SCENES))
    return [Plan.drawn(seed + n, min(len(SCENES), kills - start)) for n, start in enumerate(starts)]
