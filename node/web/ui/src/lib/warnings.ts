/** What is down that matters, most urgent first, each with its consequence in words. */
import { span } from "./format";
import type { Quote, Service } from "./types";

export interface Known {
  /** When the node was last heard of, null if it is being heard now; seconds since 1970. */
  silentSince: number | null;
  role: "maker" | "taker" | null;
  services: Service[];
  prices: Quote[];
  /** The peers, by their ids, with whom there are positions that could be closed. */
  openWith: string[];
  now: number;
}

export interface Warning {
  level: "error" | "warning";
  text: string;
}

const UP = ["healthy", "degraded"];

/** What is not done while a service is down, and what still works. */
const CONSEQUENCES: Record<
  string,
  { level: Warning["level"]; maker?: string; taker?: string; both?: string }
> = {
  data: { level: "error", both: "The data directory cannot be used: the node does nothing until it can" },
  store: {
    level: "error",
    both: "The record of positions is down: nothing is opened, rolled over or closed until it is back",
  },
  positions: {
    level: "error",
    both: "Positions are not looked after: nothing is opened, rolled over or closed until this is mended",
  },
  chain: {
    level: "error",
    both: "No chain server: confirmations are not seen, and what is force-closed goes out once one is back",
  },
  broadcaster: {
    level: "error",
    both: "Transactions are not sent: a force close goes out once this is mended",
  },
  contracts: {
    level: "error",
    both: "Contracts are not watched on the chain: old ones that a peer publishes go unseen",
  },
  punishing: {
    level: "error",
    both: "A peer that publishes an old contract is not punished until this is mended",
  },
  backup: { level: "error", both: "The backup cannot be written: nothing new is signed until it can" },
  oracle: {
    level: "warning",
    both: "The oracle does not answer: nothing opens or rolls over; what expires is paid once it speaks",
  },
  wallet: {
    level: "warning",
    both: "The wallet is down: nothing opens and nothing is sent; closing still works",
  },
  network: { level: "warning", both: "The network is down: peers are not reached; force close still works" },
  listener: { level: "warning", maker: "No taker can connect: orders, rollovers and closes do not arrive" },
  quoting: {
    level: "warning",
    maker: "Offers do not follow the market: they are withdrawn until this is mended",
  },
  settlements: { level: "warning", taker: "Closes do not go on; force close still works" },
  rollovers: { level: "warning", taker: "Positions are not rolled over: they settle at their expiry" },
  clock: { level: "warning", both: "This machine’s clock is doubtful" },
};

/** All of it; `Known` says what the page knows, and how old that is. */
export function warnings(known: Known): Warning[] {
  if (known.silentSince !== null) {
    const silent = span(known.now - known.silentSince);
    return [{ level: "error", text: `The node has not answered for ${silent}: what is shown is that old.` }];
  }
  const found = [...known.services.flatMap((service) => ofService(service, known)), ...ofPrices(known)];
  return found.sort((one, other) => Number(other.level === "error") - Number(one.level === "error"));
}

function ofService(service: Service, known: Known): Warning[] {
  if (UP.includes(service.state) && !(service.state === "degraded" && service.name === "clock")) return [];
  if (["starting", "waiting"].includes(service.state) && known.now - service.since < 10) return []; // as at every start
  const why = ` (${service.reason || service.state})`;
  if (service.name.startsWith("maker-") && known.role === "taker") {
    const maker = service.name.slice(6);
    const away = known.now - (service.last_success ?? service.since);
    if (away < 5) return []; // as when it starts anew
    const text = `The maker ${maker.slice(0, 8)}… is away for ${span(away)}`;
    const still = known.openWith.some((peer) => peer.startsWith(maker))
      ? ": its positions cannot be closed together or rolled over; force close still works"
      : "";
    return [{ level: "warning", text: `${text}${still}.` }];
  }
  const entry = CONSEQUENCES[service.name];
  const said = entry?.both ?? (known.role !== null ? entry?.[known.role] : undefined);
  if (!entry || !said) return [];
  const [what = "", ...means] = said.split(": ");
  return [{ level: entry.level, text: `${what}${why}${means.map((each) => `: ${each}`).join("")}.` }];
}

function ofPrices(known: Known): Warning[] {
  const stale = known.prices.filter((price) => price.stale);
  const [first] = stale;
  if (!first) return [];
  const what =
    stale.length === known.prices.length
      ? "Prices"
      : `${stale.map((price) => price.symbol).join(", ")} prices`;
  const age = first.at === null ? "have not arrived" : `are ${span(known.now - first.at)} old`;
  const consequence =
    known.role === "maker"
      ? "offers that follow the market are withdrawn"
      : "closing is paused; force close still works";
  return [{ level: "warning", text: `${what} ${age}: ${consequence}.` }];
}
