import { describe, expect, test } from "vitest";
import { best, beyond, cents, fitting, isPrice, text, worse } from "./prices";
import type { Offer } from "./types";

const offer = (price: string, taker_side: "long" | "short", more: Partial<Offer> = {}): Offer => ({
  id: price,
  symbol: "BTCUSD",
  maker_side: taker_side === "long" ? "short" : "long",
  taker_side,
  price,
  min_quantity: 150,
  max_quantity: 5050,
  lot: 100,
  leverages: [1, 2],
  maker_leverage: 1,
  opening_fee: 0,
  funding_rate: "0",
  fee_rate: 2,
  created: 0,
  stale_at: 600,
  ...more,
});

test("cents and back, without needless zeros", () => {
  for (const price of ["0.01", "1", "50000.5", "1048575.99", "10"]) expect(text(cents(price))).toBe(price);
  expect(text(cents("50000.50"))).toBe("50000.5");
});

test("what a price may look like", () => {
  for (const right of ["1", "0.01", "50000.5"]) expect(isPrice(right)).toBe(true);
  for (const wrong of ["", "0", "0.00", "-1", "1e5", "1.005", "5,000", " 1"])
    expect(isPrice(wrong)).toBe(false);
});

describe("limits", () => {
  test("are worse for the side that they are of", () => {
    expect(worse("40000", 10, true)).toBe("40040");
    expect(worse("40000", 10, false)).toBe("39960");
    expect(worse("40000.01", 0, true)).toBe("40000.01");
  });

  test("a long's is a most, a short's a least", () => {
    expect(beyond("long", "40000.01", "40000")).toBe(true);
    expect(beyond("long", "40000", "40000")).toBe(false);
    expect(beyond("short", "39999.99", "40000")).toBe(true);
    expect(beyond("short", "100000", "40000")).toBe(false);
  });
});

test("the best offer is the taker's best, and not stale", () => {
  const offers = [
    offer("40100", "long"),
    offer("9999", "long", { stale: true }),
    offer("40050", "long"),
    offer("39900", "short"),
    offer("100000", "short", { symbol: "ETHUSD" }),
    offer("39950", "short"),
  ];
  expect(best(offers, "BTCUSD", "long")?.price).toBe("40050");
  expect(best(offers, "BTCUSD", "short")?.price).toBe("39950");
  expect(best(offers, "XYZ", "short")).toBeUndefined();
});

test("quantities fit lots and limits", () => {
  const made = offer("40000", "long");
  expect(fitting(1, made)).toBe(200);
  expect(fitting(340, made)).toBe(300);
  expect(fitting(99999, made)).toBe(5000);
});
