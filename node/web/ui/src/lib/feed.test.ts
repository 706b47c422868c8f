/** What the feed does with what it is told, in front of sockets that a test holds. */
import { afterEach, beforeEach, expect, test, vi } from "vitest";

type Listener = (message: { data: string; lastEventId?: string }) => void;

/** A WebSocket of which the test is the node. */
class Socket {
  static all: Socket[] = [];
  onmessage: ((message: { data: string }) => void) | null = null;
  onclose: (() => void) | null = null;
  closed = false;

  constructor(readonly url: URL) {
    Socket.all.push(this);
  }

  static get last(): Socket {
    return Socket.all[Socket.all.length - 1]!;
  }

  close(): void {
    this.closed = true;
  }

  tell(event: string, number: number, data: object, life = "a"): void {
    this.onmessage?.({ data: JSON.stringify({ event, id: `${life}-${number}`, number, data }) });
  }
}

/** Server-sent events, likewise. */
class Source {
  static all: Source[] = [];
  listeners: Record<string, Listener> = {};
  onerror: (() => void) | null = null;
  closed = false;

  constructor(readonly url: URL) {
    Source.all.push(this);
  }

  addEventListener(name: string, listener: Listener): void {
    this.listeners[name] = listener;
  }

  close(): void {
    this.closed = true;
  }

  tell(event: string, id: string, data: object): void {
    this.listeners[event]?.({ data: JSON.stringify(data), lastEventId: id });
  }
}

const nothing = () => {};
/** The longest pause before the next try, and a little. */
const PAUSE = 4000;
let health: { services: { name: string; state: string }[] } | null;
let feed: InstanceType<(typeof import("./feed.svelte"))["Feed"]>;

beforeEach(async () => {
  vi.useFakeTimers();
  Socket.all = [];
  Source.all = [];
  health = null;
  vi.stubGlobal("document", {
    baseURI: "http://node.example/",
    visibilityState: "visible",
    addEventListener: nothing,
    removeEventListener: nothing,
  });
  vi.stubGlobal("addEventListener", nothing);
  vi.stubGlobal("removeEventListener", nothing);
  vi.stubGlobal("WebSocket", Socket);
  vi.stubGlobal("EventSource", Source);
  vi.stubGlobal("fetch", async () => {
    if (health === null) throw new TypeError("nobody is there");
    return new Response(JSON.stringify(health));
  });
  const { Feed } = await import("./feed.svelte");
  feed = new Feed();
  feed.start();
});

afterEach(() => {
  feed.stop();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

const state = (topics: object) => ({ topics });
const change = (key: string, value: unknown) => ({ topic: "positions", key, value });

test("the state is taken whole, then each change of it", () => {
  expect(Socket.last.url.href).toBe("ws://node.example/api/v1/ws");
  expect([feed.live, feed.known]).toEqual([false, false]);
  Socket.last.tell("state", 1, state({ positions: { one: { state: "open" } }, tip: {} }));
  expect([feed.live, feed.known, feed.has("tip")]).toEqual([true, true, true]);
  Socket.last.tell("change", 2, change("one", { state: "closed" }));
  Socket.last.tell("change", 3, change("two", { state: "ordered" }));
  Socket.last.tell("change", 4, change("one", null));
  expect(feed.topic("positions")).toEqual({ two: { state: "ordered" } });
  expect(feed.one("positions", "two")).toEqual({ state: "ordered" });
  expect(Socket.all.length).toBe(1);
});

test("after a cut it asks for what came since, and shows what was known meanwhile", async () => {
  Socket.last.tell("state", 1, state({ positions: { one: 1 } }));
  Socket.last.tell("change", 5, change("two", 2));
  Socket.last.onclose?.();
  expect([feed.live, feed.known]).toEqual([false, true]);
  expect(feed.lostAt).not.toBeNull();
  expect(feed.topic("positions")).toEqual({ one: 1, two: 2 });
  await vi.advanceTimersByTimeAsync(PAUSE);
  expect(Socket.all.length).toBe(2);
  expect(Socket.last.url.searchParams.get("last")).toBe("a-5");
  Socket.last.tell("change", 6, change("one", 3));
  expect([feed.live, feed.lostAt]).toEqual([true, null]);
  expect(feed.topic("positions")).toEqual({ one: 3, two: 2 });
});

test("a node that began anew sends the state, and topics that it has no more are dropped", async () => {
  Socket.last.tell("state", 90, state({ positions: { one: 1 }, requests: { ask: 1 } }));
  Socket.last.onclose?.();
  await vi.advanceTimersByTimeAsync(PAUSE);
  Socket.last.tell("state", 1, state({ positions: { two: 2 } }), "b"); // numbers begin anew, too
  expect([feed.has("requests"), feed.topic("requests")]).toEqual([false, {}]);
  expect(feed.topic("positions")).toEqual({ two: 2 });
  Socket.last.tell("change", 2, change("three", 3), "b");
  expect(feed.topic("positions")).toEqual({ two: 2, three: 3 });
  expect(feed.live).toBe(true);
});

test.each([4, 3])("a change that does not come after the last one ends the connection: %i", async (number) => {
  Socket.last.tell("state", 1, state({ positions: { one: 1 } }));
  Socket.last.tell("change", 4, change("one", 2));
  const first = Socket.last;
  first.tell("change", number, change("one", "old"));
  expect(feed.topic("positions")).toEqual({ one: 2 });
  expect([first.closed, feed.live]).toEqual([true, false]);
  await vi.advanceTimersByTimeAsync(PAUSE);
  expect(Socket.last).not.toBe(first);
  expect(Socket.last.url.searchParams.has("last")).toBe(false); // all of it, not what came since
});

test("a connection without a sign of life is given up, one with beats is not", async () => {
  Socket.last.tell("state", 1, state({}));
  for (let number = 0; number < 4; number += 1) {
    await vi.advanceTimersByTimeAsync(30_000);
    Socket.last.onmessage?.({ data: JSON.stringify({ event: "beat", data: {} }) });
  }
  expect([feed.live, Socket.all.length]).toEqual([true, 1]);
  await vi.advanceTimersByTimeAsync(41_000);
  expect(Socket.all[0]?.closed).toBe(true);
  expect(feed.live).toBe(false);
});

test("where no WebSocket comes about it listens to server-sent events, and tries again once they end", async () => {
  for (let number = 0; number < 3; number += 1) {
    Socket.last.onclose?.();
    await vi.advanceTimersByTimeAsync(PAUSE);
  }
  expect([Socket.all.length, Source.all.length]).toEqual([3, 1]);
  const source = Source.all[0]!;
  source.tell("state", "a-7", state({ positions: { one: 1 } }));
  source.tell("change", "a-8", change("two", 2));
  expect(feed.live).toBe(true);
  expect(feed.topic("positions")).toEqual({ one: 1, two: 2 });
  source.onerror?.();
  expect(source.closed).toBe(true);
  await vi.advanceTimersByTimeAsync(PAUSE);
  expect(Socket.all.length).toBe(4);
  expect(Socket.last.url.searchParams.get("last")).toBe("a-8");
});

test("while the feed is away the health is asked for", async () => {
  await vi.advanceTimersByTimeAsync(1);
  expect([feed.answers, feed.known]).toEqual([false, false]);
  health = { services: [{ name: "store", state: "blocked" }] };
  await vi.advanceTimersByTimeAsync(2000);
  expect([feed.answers, feed.known, feed.live]).toEqual([true, true, false]);
  expect(feed.one("health", "store")).toEqual({ name: "store", state: "blocked" });
});

test("whoever signs out leaves nothing behind", async () => {
  Socket.last.tell("state", 3, state({ wallet: { balance: 1 } }));
  const first = Socket.last;
  feed.clear();
  expect([first.closed, feed.known, feed.has("wallet")]).toEqual([true, false, false]);
  await vi.advanceTimersByTimeAsync(10_000);
  expect(Socket.all.length).toBe(1);
  feed.start();
  expect(Socket.last.url.searchParams.has("last")).toBe(false);
  Socket.last.tell("state", 1, state({})); // of whichever number
  expect(feed.live).toBe(true);
});
