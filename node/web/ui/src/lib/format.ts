/** Numbers, ages and moments for people. Amounts are whole satoshis, prices decimal strings: neither becomes a float
 * on its way to the node, only for what is shown in USD. */

import type { Unit } from "./state.svelte";

const MINUS = "−";
/** A thin space that does not break. */
const GAP = "\u202f";

/** Digits in groups of three. */
export function grouped(digits: string): string {
  return digits.replace(/\B(?=(\d{3})+$)/g, ",");
}

function signOf(amount: number, signed: boolean): string {
  return amount < 0 ? MINUS : signed && amount > 0 ? "+" : "";
}

/** 1234567 → "1,234,567" */
export function sats(amount: number, signed = false): string {
  return signOf(amount, signed) + grouped(String(Math.abs(amount)));
}

/** 1234567 → "0.01 234 567": groups are what makes eight places readable. */
export function btc(amount: number, signed = false): string {
  const digits = String(Math.abs(amount)).padStart(9, "0");
  const parts = digits.slice(-8);
  const groups = [parts.slice(0, 2), parts.slice(2, 5), parts.slice(5)];
  return `${signOf(amount, signed)}${grouped(digits.slice(0, -8))}.${groups.join(GAP)}`;
}

/** At a price in USD for one bitcoin. */
export function usd(amount: number, price: number, signed = false): string {
  const value = (Math.abs(amount) / 1e8) * price;
  const shown = value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  return `${signOf(amount, signed)}$${shown}`;
}

/** An amount in the user's unit; USD fall back to satoshis while no price is known. */
export function money(amount: number, unit: Unit, price: number | null, signed = false): string {
  if (unit === "BTC") return `${btc(amount, signed)} BTC`;
  if (unit === "USD" && price !== null) return usd(amount, price, signed);
  return `${sats(amount, signed)} sat`;
}

/** A price in USD: "50000.5" → "50,000.5"; null is a price that never comes. */
export function price(value: string | number | null | undefined): string {
  if (value === null || value === undefined) return "∞";
  const [whole = "", places] = String(value).split(".");
  return grouped(whole) + (places === undefined ? "" : `.${places}`);
}

/** A rate as a part: "0.0001" → "0.01 %", exact. */
export function percent(rate: string, signed = false): string {
  const negative = rate.startsWith("-");
  const [whole = "0", places = ""] = rate.replace(/^[-+]/, "").split(".");
  const digits = places.padEnd(2, "0");
  const shown = `${BigInt(whole + digits.slice(0, 2))}.${digits.slice(2)}`.replace(/\.?0*$/, (end) =>
    end.startsWith(".") ? "" : end,
  );
  const zero = /^0*$/.test(whole + places);
  return `${negative && !zero ? MINUS : signed && !zero ? "+" : ""}${shown}${GAP}%`;
}

/** Seconds as a span: 75 → "1 min 15 s", 90000 → "1 d 1 h". */
export function span(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  const units: readonly [string, number][] = [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ];
  const first = units.findIndex(([, size]) => whole >= size);
  if (first < 0) return "0 s";
  const [name, size] = units[first] ?? ["s", 1];
  const rest = units[first + 1];
  const more = rest === undefined ? 0 : Math.floor((whole % size) / rest[1]);
  return (
    `${Math.floor(whole / size)} ${name}` + (more > 0 && rest !== undefined ? ` ${more} ${rest[0]}` : "")
  );
}

/** Seconds as a countdown: 3725 → "1:02:05". */
export function countdown(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  const pair = (value: number) => String(value).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${pair(Math.floor(whole / 60) % 60)}:${pair(whole % 60)}`;
}

/** A moment by the reader's own clock. */
export function moment(seconds: number): string {
  const at = new Date(seconds * 1000);
  const pair = (value: number) => String(value).padStart(2, "0");
  const day = `${at.getFullYear()}-${pair(at.getMonth() + 1)}-${pair(at.getDate())}`;
  return `${day} ${pair(at.getHours())}:${pair(at.getMinutes())}:${pair(at.getSeconds())}`;
}

/** The ends of a long id. */
export function short(id: string, ends = 6): string {
  return id.length <= 2 * ends + 1 ? id : `${id.slice(0, ends)}…${id.slice(-ends)}`;
}
