import { expect, test } from "vitest";
import type { Quote, Service } from "./types";
import { warnings, type Known } from "./warnings";

const NOW = 1_000_000;

function service(name: string, more: Partial<Service> = {}): Service {
  return {
    name,
    state: "healthy",
    since: NOW - 100,
    reason: "",
    remedy: "",
    next_try: null,
    data_at: null,
    last_success: null,
    failures: 0,
    bugs: 0,
    needs: [],
    causes: [],
    repairs: [],
    actions: [],
    ...more,
  };
}

const stale: Quote = {
  symbol: "BTCUSD",
  bid: "50000",
  ask: "50000.5",
  at: NOW - 180,
  received_at: NOW - 180,
  stale: true,
  stale_at: NOW - 60,
  reason: "old",
};

const known = (more: Partial<Known> = {}): Known => ({
  silentSince: null,
  role: "taker",
  services: [],
  prices: [],
  openWith: ["0123456789abcdef".repeat(4)],
  now: NOW,
  ...more,
});

const texts = (more: Partial<Known>) => warnings(known(more)).map((each) => each.text);

test("nothing is said of what is well", () => {
  expect(texts({ services: [service("store"), service("chain"), service("maker-0123456789abcdef")] })).toEqual([]);
});

test("old prices pause closing, not force close", () => {
  expect(texts({ prices: [stale] })).toEqual(["Prices are 3 min old: closing is paused; force close still works."]);
  expect(texts({ prices: [stale], role: "maker" })[0]).toContain("offers that follow the market are withdrawn");
});

test("what is down is told with its reason and its consequence, the worst first", () => {
  const down = { state: "restarting", reason: "disk full" };
  const [first, second] = texts({ services: [service("wallet", down), service("store", down)] });
  expect(first).toBe(
    "The record of positions is down (disk full): nothing is opened, rolled over or closed until it is back.",
  );
  expect(second).toContain("The wallet is down (disk full)");
});

test("a start is no reason to warn, one that lasts is", () => {
  const starting = (since: number) => texts({ services: [service("chain", { state: "starting", since })] });
  expect(starting(NOW - 2)).toEqual([]);
  expect(starting(NOW - 60)).toHaveLength(1);
});

test("a maker that is away matters most to who has positions", () => {
  const away = service("maker-0123456789abcdef", { state: "restarting", last_success: NOW - 120, since: NOW - 1 });
  expect(texts({ services: [away] })).toEqual([
    "The maker 01234567… is away for 2 min: its positions cannot be closed together or rolled over; force close still works.",
  ]);
  expect(texts({ services: [away], openWith: ["ff".repeat(32)] })).toEqual([
    "The maker 01234567… is away for 2 min.",
  ]);
  expect(texts({ services: [{ ...away, last_success: NOW - 1 }] })).toEqual([]);
});

test("a node that is silent says nothing else", () => {
  expect(texts({ silentSince: NOW - 5, prices: [stale] })).toEqual([
    "The node has not answered for 5 s: what is shown is that old.",
  ]);
});
