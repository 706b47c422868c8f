from __future__ import annotations

from tests.simulation.scenarios import Story


def judge(story: Story) -> tuple[list[str], str]:
    out = []
    for name, p in story.world.players.items():
        out += [f"{name}:{x.state.value}" for x in (p.positions() if p.up else [])]
    return list(story.world.bugs), " ".join(out)
