/** What the maker's topics of the feed hold. Quantities in contracts, prices and rates as decimal strings. */
import type { Offer, Position, Side } from "./types";

export interface Quoted {
  symbol: string;
  maker_side: Side;
  spread: string;
  offer: Offer | null;
  reason: string;
}

export interface About {
  address: string;
  exposure?: Record<string, number>;
  max_exposure: Record<string, number>;
  quoted: Quoted[];
  withdrawn: Record<string, string>;
}

export interface Rate {
  funding_rate: string | null;
  since: number | null;
  stale_at: number | null;
  stale: boolean;
}

export interface Request {
  id: string;
  kind: string;
  order_id: string;
  counterparty: string;
  symbol: string;
  side: Side;
  quantity: number;
  leverage: number;
  price: string;
  funding_rate: string;
  since: number;
  answer_by: number;
}

export interface PeerStakes {
  peer: string;
  positions: number;
  /** Contracts, long less short, by symbol. */
  exposure: Record<string, number>;
  margin: number;
}

/** States in which nothing is at stake any more. */
const OVER = ["closed", "settled", "refunded", "punished", "rejected", "setup failed"];

/** What is at stake with each peer, the largest margin first. */
export function byPeer(positions: Position[]): PeerStakes[] {
  const found = new Map<string, PeerStakes>();
  for (const position of positions) {
    if (OVER.includes(position.state)) continue;
    const peer = found.get(position.counterparty) ?? {
      peer: position.counterparty,
      positions: 0,
      exposure: {},
      margin: 0,
    };
    const signed = position.side === "long" ? position.quantity : -position.quantity;
    peer.positions += 1;
    peer.exposure[position.symbol] = (peer.exposure[position.symbol] ?? 0) + signed;
    peer.margin += position.margin ?? 0;
    found.set(position.counterparty, peer);
  }
  return [...found.values()].sort((one, other) => other.margin - one.margin);
}
