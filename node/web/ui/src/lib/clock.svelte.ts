/** The node's time, once a second, and the oracle's, whose hours may be shorter on a regtest world. */

import { get } from "./api";
import { feed } from "./feed.svelte";
import type { NodeInfo } from "./types";

class Clock {
  /** Milliseconds of this machine's clock. */
  #here = $state(Date.now());
  #told = $state.raw<NodeInfo | null>(null);

  constructor() {
    setInterval(() => (this.#here = Date.now()), 1000);
  }

  /** Seconds since 1970 by the node's clock. */
  get now(): number {
    return this.#here / 1000 + feed.ahead;
  }

  /** Seconds since 1970 in the oracle's calendar; expiries are in it. */
  get calendar(): number {
    const told = this.#told;
    return told === null ? this.now : told.calendar + (this.now - told.time) * this.#pace;
  }

  /** Whether the node told what its calendar says. */
  get known(): boolean {
    return this.#told !== null;
  }

  /** Seconds until a moment of the calendar. */
  until(calendar: number): number {
    return (calendar - this.calendar) / this.#pace;
  }

  /** By how much the calendar is faster than the clock. */
  get #pace(): number {
    return 3600 / (this.#told?.hour ?? 3600);
  }

  /** Ask the node for its two times. */
  async look(): Promise<NodeInfo> {
    const node = await get<NodeInfo>("node");
    this.#told = node;
    return node;
  }
}

export const clock = new Clock();
