/** What the pages ask of the feed, by name. */

import { clock } from "./clock.svelte";
import { feed } from "./feed.svelte";
import type { MakerLink, NodeInfo, Offer, Position, Quote, Service, Value, Wallet } from "./types";

const ENDED = new Set(["closed", "settled", "refunded", "punished", "rejected", "setup failed"]);

export function ended(position: Position): boolean {
  return ENDED.has(position.state);
}

class Node {
  info = $state<NodeInfo | null>(null);

  /** Who the node is; asked for on connecting. */
  async look(): Promise<void> {
    this.info = await clock.look();
  }

  get role(): "maker" | "taker" | null {
    if (this.info?.role) return this.info.role;
    if (feed.has("maker")) return "maker";
    if (feed.has("makers")) return "taker";
    const services = feed.topic<Service>("health");
    return "listener" in services ? "maker" : "setups" in services ? "taker" : null;
  }

  /** Whether the node read its positions since it started: only then none means none. */
  get positionsKnown(): boolean {
    return feed.one("stale", "positions") !== undefined;
  }

  get positions(): Position[] {
    return Object.values(feed.topic<Position>("positions")).sort((a, b) => b.placed_at - a.placed_at);
  }

  /** What a position is worth now; undefined where the price moves nothing. */
  value(position: Position): Value | undefined {
    return feed.one<Value>("values", position.order_id);
  }

  get offers(): Offer[] {
    return Object.values(feed.topic<Offer>("offers"));
  }

  get makers(): MakerLink[] {
    return Object.values(feed.topic<MakerLink>("makers"));
  }

  /** Whether that maker does not answer now; false where it is not known. */
  away(peer: string): boolean {
    const link = this.makers.find(({ identity }) => identity === peer);
    return link !== undefined && !["healthy", "degraded"].includes(link.state);
  }

  get wallet(): Wallet | undefined {
    return feed.one<Wallet>("wallet", "balance");
  }

  get services(): Service[] {
    return Object.values(feed.topic<Service>("health"));
  }

  quote(symbol: string): Quote | undefined {
    return feed.one<Quote>("prices", symbol);
  }

  get symbols(): string[] {
    const known = new Set([
      ...Object.keys(feed.topic("prices")),
      ...this.offers.map((offer) => offer.symbol),
    ]);
    return [...known].sort();
  }

  /** USD for one bitcoin, for what is shown in USD alone; null while no quote is known. */
  get bitcoinPrice(): number | null {
    const quote = this.quote("BTCUSD");
    if (!quote?.bid || !quote.ask) return null;
    return (Number(quote.bid) + Number(quote.ask)) / 2;
  }
}

export const node = new Node();
