"""``scripts/chaos``: nodes are killed at random moments; their positions and coins must come out right all the same.

What happens is drawn in :mod:`node.regtest.plans`, done in :mod:`node.regtest.story`, judged in
:mod:`node.regtest.verdicts`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx2
import trio

from node.regtest.plans import SCENES, Plan, plans_for
from node.regtest.processes import Processes, end_in_order
from node.regtest.story import PATIENCE, Story
from node.regtest.verdicts import came_out_right

HOUR = 2.0
"""Seconds that an hour takes: a setup on a busy machine must not take longer."""
AT_ONCE = 4
"""Stories in one world."""


async def tell_all(folder: Path, plans: Sequence[Plan]) -> list[Story]:
    """The stories of these plans, all at once in one world."""
    stories: list[Story] = []
    async with httpx2.AsyncClient(timeout=15, trust_env=False) as http:
        world = Processes(folder, HOUR, http)
        async with world.world() as process:
            with trio.fail_after(PATIENCE):
                await world.world_is_up(process)
            async with trio.open_nursery() as nursery:
                for plan in plans:
                    stories.append(story := Story(plan, world))
                    nursery.start_soon(story.tell, came_out_right)
    return stories


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if every story came out right, else 1."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="What becomes of nodes that are killed.")
    parser.add_argument("--kills", type=int, required=True, metavar="N", help="how often a node is killed")
    parser.add_argument(
        "--seed", type=int, default=1, help=f"of the first {len(SCENES)} kills (1); the next ones have the next"
    )
    options = parser.parse_args(arguments)
    if options.kills < 1:
        parser.error(f"--kills is {options.kills}, allowed is 1 or more")
    end_in_order()
    try:
        return _report(plans_for(options.kills, options.seed))
    except* KeyboardInterrupt:  # out of nurseries
        print("\nended by you")
    return 130


def _report(plans: Sequence[Plan]) -> int:
    """Tell the stories, a few at a time, and print what became of them."""
    outcomes: Counter[str] = Counter()
    failed: list[Story] = []
    began, kills = time.monotonic(), 0
    for first in range(0, len(plans), AT_ONCE):
        folder = Path(tempfile.mkdtemp(prefix="cfdnode-chaos-"))
        stories = trio.run(tell_all, folder, plans[first : first + AT_ONCE])
        bad = [story for story in stories if story.failure]
        for story in stories:
            outcomes += story.outcomes
            kills += len(story.plan.kills)
        for story in bad:
            print(f"FAILED {story.failure}; data and logs are in {folder}", flush=True)
        failed += bad
        if not bad:
            shutil.rmtree(folder, ignore_errors=True)
        print(
            f"{time.monotonic() - began:5.0f} s  {kills} of {sum(len(plan.kills) for plan in plans)} kills", flush=True
        )
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:5}  {outcome}")
    if failed:
        seeds = ", ".join(str(story.plan.seed) for story in failed)
        print(f"{len(failed)} of {len(plans)} stories failed, those of the seeds {seeds}")
        return 1
    print(f"All {len(plans)} stories came out right: every position ended alike for both, no satoshi is missing.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
