import { describe, expect, test } from "vitest";
import { btc, countdown, money, percent, price, sats, short, span, usd } from "./format";

describe("amounts", () => {
  test("are grouped, with the sign of mathematics", () => {
    expect(sats(0)).toBe("0");
    expect(sats(1234567)).toBe("1,234,567");
    expect(sats(-1234, true)).toBe("−1,234");
    expect(sats(12, true)).toBe("+12");
    expect(sats(0, true)).toBe("0");
  });

  test("in BTC have eight places, exact to the satoshi", () => {
    expect(btc(1)).toBe("0.00\u202f000\u202f001");
    expect(btc(2_100_000_000_000_000)).toBe("21,000,000.00\u202f000\u202f000");
    expect(btc(-123_456_789)).toBe("−1.23\u202f456\u202f789");
  });

  test("in USD need a price, and are satoshis without", () => {
    expect(usd(100_000_000, 50000.5)).toBe("$50,000.50");
    expect(money(-100, "USD", null)).toBe("−100 sat");
    expect(money(-200_000, "USD", 50000, true)).toBe("−$100.00");
  });
});

describe("prices and rates", () => {
  test("keep every place that they have", () => {
    expect(price("50000.50")).toBe("50,000.50");
    expect(price("999")).toBe("999");
    expect(price(1048575)).toBe("1,048,575");
    expect(price(null)).toBe("∞");
  });

  test("rates become percent without rounding", () => {
    expect(percent("0.0001")).toBe("0.01\u202f%");
    expect(percent("-0.000123", true)).toBe("−0.0123\u202f%");
    expect(percent("1")).toBe("100\u202f%");
    expect(percent("0.1", true)).toBe("+10\u202f%");
    expect(percent("0", true)).toBe("0\u202f%");
    expect(percent("-0.000", true)).toBe("0\u202f%");
    expect(percent("0.005")).toBe("0.5\u202f%");
  });
});

describe("times", () => {
  test("spans have two units at most", () => {
    expect(span(-3)).toBe("0 s");
    expect(span(59.9)).toBe("59 s");
    expect(span(75)).toBe("1 min 15 s");
    expect(span(3600)).toBe("1 h");
    expect(span(90_061)).toBe("1 d 1 h");
  });

  test("countdowns end at zero", () => {
    expect(countdown(3725)).toBe("1:02:05");
    expect(countdown(-1)).toBe("0:00:00");
    expect(countdown(90_000)).toBe("25:00:00");
  });
});

test("long ids show their ends", () => {
  expect(short("abcdefghijklmnop")).toBe("abcdef…klmnop");
  expect(short("abcdefghijkl")).toBe("abcdefghijkl");
});
