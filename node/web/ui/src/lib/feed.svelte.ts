/** What is known of the node, live: the whole state on connecting, then each change of it.
 *
 * One WebSocket; where none can be had, server-sent events. While neither is there, the health is asked for, which the
 * node answers from its first moment on. What was known stays, with `live` false.
 */

import { SvelteMap } from "svelte/reactivity";
import { ApiError, get, root } from "./api";
import { session } from "./session.svelte";
import type { Service } from "./types";

type Values = Readonly<Record<string, unknown>>;

interface Told {
  event: "state" | "change" | "beat";
  id?: string;
  number?: number;
  data: Record<string, unknown>;
}

/** Seconds without a word, heartbeats included, after which a connection counts as lost. */
const SILENCE = 40;
const PAUSES = [0.5, 1, 2, 3];
/** WebSockets that did not come about in a row, after which server-sent events are tried. */
const REFUSED = 3;
/** How often the health is asked for while the feed is away, in seconds. */
const HEALTH_EVERY = 2;

export class Feed {
  /** Whether what is known is of now. */
  live = $state(false);
  /** Whether anything was ever told. */
  known = $state(false);
  /** Whether the node answers at all, be it with its health alone. */
  answers = $state(true);
  /** Since when it is not live, in milliseconds of this machine's clock. */
  lostAt = $state<number | null>(Date.now());
  /** Seconds by which the node's clock is ahead of this machine's. */
  ahead = $state(0);
  #topics = new SvelteMap<string, Values>();
  #last = "";
  #number = -1;
  #failures = 0;
  #refused = 0;
  #closing: (() => void) | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #silence: ReturnType<typeof setTimeout> | undefined;
  #asking: ReturnType<typeof setTimeout> | undefined;
  #running = false;

  /** All values of a topic by key; reading it follows it. */
  topic<T>(name: string): Readonly<Record<string, T>> {
    return (this.#topics.get(name) ?? {}) as Readonly<Record<string, T>>;
  }

  has(name: string): boolean {
    return this.#topics.has(name);
  }

  one<T>(topic: string, key: string): T | undefined {
    return this.topic<T>(topic)[key];
  }

  start(): void {
    if (this.#running) return;
    this.#running = true;
    addEventListener("online", this.#atOnce);
    document.addEventListener("visibilitychange", this.#atOnce);
    this.#connect();
    this.#askHealth();
  }

  stop(): void {
    this.#running = false;
    removeEventListener("online", this.#atOnce);
    document.removeEventListener("visibilitychange", this.#atOnce);
    clearTimeout(this.#timer);
    clearTimeout(this.#silence);
    clearTimeout(this.#asking);
    this.#closing?.();
    this.#closing = null;
    this.live = false;
    this.lostAt ??= Date.now();
  }

  /** Forget everything: somebody else may sign in. */
  clear(): void {
    this.stop();
    this.#topics.clear();
    this.#last = "";
    this.#number = -1;
    this.known = false;
  }

  #atOnce = (): void => {
    if (document.visibilityState === "visible" && this.#running && this.#closing === null) {
      clearTimeout(this.#timer);
      this.#connect();
    }
  };

  #connect(): void {
    this.#heard();
    if (this.#refused >= REFUSED) this.#listen();
    else this.#open();
  }

  #open(): void {
    const address = new URL("ws", root);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    if (this.#last) address.searchParams.set("last", this.#last);
    const socket = new WebSocket(address);
    let told = false;
    socket.onmessage = (message) => {
      told = true;
      this.#refused = 0;
      this.#take(JSON.parse(message.data as string) as Told);
    };
    socket.onclose = () => {
      if (!told) this.#refused += 1;
      this.#lost();
    };
    this.#closing = () => {
      socket.onmessage = socket.onclose = null;
      socket.close();
    };
  }

  #listen(): void {
    const source = new EventSource(new URL("feed", root));
    const take = (event: "state" | "change") => (message: MessageEvent<string>) => {
      const number = Number(message.lastEventId.split("-").pop());
      this.#take({
        event,
        id: message.lastEventId,
        number,
        data: JSON.parse(message.data) as Record<string, unknown>,
      });
    };
    source.addEventListener("state", take("state"));
    source.addEventListener("change", take("change"));
    source.onerror = () => {
      this.#refused = 0; // the next try is a WebSocket's
      this.#lost();
    };
    clearTimeout(this.#silence); // its heartbeats are not shown to us; the browser sees a connection that breaks
    this.#closing = () => source.close();
  }

  #take(told: Told): void {
    this.#heard();
    if (told.event === "state") {
      const topics = told.data.topics as Record<string, Values>;
      for (const gone of [...this.#topics.keys()].filter((name) => !(name in topics)))
        this.#topics.delete(gone);
      for (const [name, values] of Object.entries(topics)) this.#topics.set(name, values);
    } else if (told.event === "change") {
      // Numbers only rise; what falls behind is of another life of the node, or came twice.
      if (told.number === undefined || told.number <= this.#number) {
        this.#last = "";
        this.#lost();
        return;
      }
      const { topic, key, value } = told.data as { topic: string; key: string; value: unknown };
      const values = { ...this.#topics.get(topic) };
      if (value === null) delete values[key];
      else values[key] = value;
      this.#topics.set(topic, values);
    }
    if (typeof told.data.time === "number") this.ahead = told.data.time - Date.now() / 1000;
    if (told.id !== undefined && told.number !== undefined) {
      this.#last = told.id;
      this.#number = told.number;
    }
    this.#failures = 0;
    this.live = this.known = this.answers = true;
    this.lostAt = null;
  }

  #heard(): void {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#lost(), SILENCE * 1000);
  }

  #lost(): void {
    this.#closing?.();
    this.#closing = null;
    clearTimeout(this.#silence);
    clearTimeout(this.#timer);
    if (!this.#running) return;
    if (this.live) {
      this.live = false;
      this.lostAt = Date.now();
    }
    const pause = PAUSES[Math.min(this.#failures, PAUSES.length - 1)] ?? 3;
    this.#failures += 1;
    this.#timer = setTimeout(() => this.#connect(), pause * 1000 * (0.75 + Math.random() / 2));
  }

  /** While the feed is away. */
  async #askHealth(): Promise<void> {
    if (!this.live) {
      try {
        const told = await get<{ services: Service[]; time?: number }>("health");
        this.answers = true;
        if (!this.live && Array.isArray(told.services)) {
          this.#topics.set("health", Object.fromEntries(told.services.map((each) => [each.name, each])));
          this.known = true;
        }
      } catch (error) {
        if (error instanceof ApiError) this.answers = error.status !== 0;
      }
      if (session.state === "out") return;
    }
    if (this.#running) this.#asking = setTimeout(() => void this.#askHealth(), HEALTH_EVERY * 1000);
  }
}

export const feed = new Feed();
