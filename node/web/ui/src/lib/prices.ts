/** Arithmetic with prices as the API writes them: decimal strings with at most two places, never floats. */

import type { Offer, Side } from "./types";

/** "50000.5" → 5000050n */
export function cents(price: string): bigint {
  const [whole = "0", places = ""] = price.split(".");
  return BigInt(whole + places.padEnd(2, "0").slice(0, 2));
}

/** 5000050n → "50000.5" */
export function text(value: bigint): string {
  const digits = value.toString().padStart(3, "0");
  const places = digits.slice(-2).replace(/0+$/, "");
  return digits.slice(0, -2) + (places === "" ? "" : `.${places}`);
}

export function isPrice(said: string): boolean {
  return /^\d{1,7}(\.\d{1,2})?$/.test(said) && cents(said) > 0n;
}

/** By this many ten-thousandths worse for who buys (`dearer`) or sells, to the cent. */
export function worse(price: string, tenThousandths: number, dearer: boolean): string {
  const part = (cents(price) * BigInt(tenThousandths)) / 10_000n;
  return text(dearer ? cents(price) + part : cents(price) - part);
}

/** Whether a price is beyond the limit of who opens on this side: a long buys, a short sells. */
export function beyond(side: Side, price: string, limit: string): boolean {
  return side === "long" ? cents(price) > cents(limit) : cents(price) < cents(limit);
}

/** The best offer for who takes this side: the lowest for a long, the highest for a short. */
export function best(offers: readonly Offer[], symbol: string, side: Side): Offer | undefined {
  let found: Offer | undefined;
  for (const offer of offers) {
    if (offer.symbol !== symbol || offer.taker_side !== side || offer.stale) continue;
    if (found === undefined || beyond(side, found.price, offer.price)) found = offer;
  }
  return found;
}

/** The nearest quantity that an offer takes. */
export function fitting(quantity: number, offer: Offer): number {
  const least = Math.ceil(offer.min_quantity / offer.lot) * offer.lot;
  const most = Math.floor(offer.max_quantity / offer.lot) * offer.lot;
  const rounded = Math.round(quantity / offer.lot) * offer.lot;
  return Math.max(least, Math.min(most, rounded));
}
