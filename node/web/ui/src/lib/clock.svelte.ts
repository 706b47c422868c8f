/** The node's time, once a second, and the oracle's, whose hours may be shorter on a regtest world. */

import { get } from "./api";
import { feed } from "./feed.svelte";
import type { NodeInfo } from "./types";

class Clock {
  /** Milliseconds of this machine's clock. */
  #here = $state(Date.now());
  #told = $state<{ time: number; calendar: number } | null>(null);
  #before: { time: number; calendar: number } | null = null;
  #pace = $state(1);

  constructor() {
    setInterval(() => (this.#here = Date.now()), 1000);
  }

  /** Seconds since 1970 by the node's clock. */
  get now(): number {
    return this.#here / 1000 + feed.ahead;
  }

  /** Seconds since 1970 in the oracle's calendar; expiries are in it. */
  get calendar(): number {
    return this.#told === null ? this.now : this.#told.calendar + (this.now - this.#told.time) * this.#pace;
  }

  /** Seconds until a moment of the calendar. */
  until(calendar: number): number {
    return (calendar - this.calendar) / this.#pace;
  }

  /** Ask the node for its two times. The pace of the calendar shows from two answers. */
  async look(): Promise<NodeInfo> {
    const node = await get<NodeInfo>("node");
    this.#know(node);
    return node;
  }

  #know(node: NodeInfo): void {
    const told = { time: node.time, calendar: node.calendar };
    const first = this.#before;
    if (first !== null && told.time - first.time >= 1) {
      const pace = (told.calendar - first.calendar) / (told.time - first.time);
      this.#pace = pace > 1.5 ? pace : 1;
    }
    this.#before ??= told;
    this.#told = told;
  }
}

export const clock = new Clock();
