/** What the API says. Amounts are whole satoshis, prices and rates decimal strings, times seconds since 1970. */

export type Side = "long" | "short";

export interface Problem {
  code: string;
  sentence: string;
}

export interface Quote {
  symbol: string;
  bid: string | null;
  ask: string | null;
  at: number | null;
  received_at: number | null;
  stale: boolean;
  stale_at: number | null;
  reason: string | null;
}

export interface Offer {
  id: string;
  symbol: string;
  maker_side: Side;
  taker_side: Side;
  price: string;
  min_quantity: number;
  max_quantity: number;
  lot: number;
  leverages: number[];
  maker_leverage: number;
  opening_fee: number;
  funding_rate: string;
  fee_rate: number;
  created: number;
  stale_at: number;
  /** Of the taker's view alone. */
  maker?: string;
  as_of?: number;
  stale?: boolean;
  reason?: string | null;
}

export interface MakerLink {
  identity: string;
  state: string;
  reason: string | null;
  address?: string;
  agent?: string;
  protocols?: string[];
  latency?: number | null;
}

export interface Wallet {
  confirmed: number;
  pending: number;
  reserved: number;
  margin_locked: number;
  kept_for_fees: number | null;
  height: number | null;
  coins: number;
  as_of: number;
  stale: boolean;
  reason: string | null;
}

/** What made a service fail, alike ones together. */
export interface Cause {
  text: string;
  count: number;
  first: number;
  last: number;
}

export interface Repair {
  name: string;
  title: string;
  consequence: string;
}

export interface Service {
  name: string;
  state: string;
  since: number;
  reason: string | null;
  next_try: number | null;
  remedy: string | null;
  data_at: number | null;
  last_success: number | null;
  needs: string[];
  causes: Cause[];
  repairs: Repair[];
  actions: string[];
  failures: number;
  bugs: number;
  [more: string]: unknown;
}

export interface Contract {
  index: number;
  expiry: number;
  event: string;
  oracle: string;
  cets: number;
  lock_txid: string;
  lock_height: number | null;
  commit_txid: string;
  commit_height: number | null;
  commit_reason: string | null;
  terms: {
    price: string;
    quantity: number;
    maker_leverage: number;
    taker_leverage: number;
    fee_rate: number;
    [more: string]: unknown;
  };
  broadcasts: Record<string, { at: number; refused: string | null }>;
}

export interface Rollover {
  contracts: number;
  funding_rate: string | null;
  under_way: number | null;
  refusal: Problem | null;
  /** Of the calendar. */
  from?: number | null;
  until?: number | null;
  /** Of the wall clock. */
  next_try?: number | null;
  reason?: string | null;
  estimate?: { funding_rate: string; hours: number; funding: number } | null;
}

/** What closing at the last quote would bring, in satoshis. */
export interface Value {
  price: string;
  as_of: number;
  pnl: number;
  account: number;
  payout: number;
  fees_back: number;
  paid: number;
}

export interface Transaction {
  kind: string;
  txid: string;
  height: number | null;
}

/** One of the wallet's; `amount` is what it brought the wallet. */
export interface WalletTransaction {
  txid: string;
  amount: number;
  fee: number | null;
  confirmations: number;
  height: number | null;
  time: number | null;
  of: { order_id: string; kind: string } | null;
}

/** What an order would come to; amounts in satoshis, positive ones are paid to us. */
export interface Preview {
  offer_id: string;
  maker: string;
  stale_at: number;
  symbol: string;
  side: Side;
  quantity: number;
  leverage: number;
  price: string;
  margin: number;
  maker_margin: number;
  pool: number;
  opening_fee: number;
  funding: { rate: string; per_day: number; hours: number };
  account: number;
  fees: { rate: number; lock: number; commit: number; cet: number; total: number; coins: number };
  total: number;
  liquidation_price: string | null;
  maker_liquidation_price: string | null;
  break_even: string | null;
  break_even_after_fees: string | null;
  curve: [string, number][];
  expires_in: number;
  problem: Problem | null;
}

/** What a close would bring now. */
export interface ClosePreview {
  price: string | null;
  limit: string | null;
  problem: Problem | null;
  as_of: number | null;
  margin?: number;
  account?: number;
  pnl?: number;
  payout?: number;
  fees_back?: number;
  fee?: number;
  paid?: number;
}

export interface Candle {
  time: number;
  open: string;
  high: string;
  low: string;
  close: string;
}

export interface Closing {
  stage: "asked" | "refused" | "half signed" | "signed";
  price: string;
  limit: string | null;
  pays: number;
  commit_at: number | null;
  signed_at: number | null;
  txid: string | null;
  refusal: Problem | null;
}

export interface Settlement {
  event: string;
  price: string | number | null;
  maker_payout: number;
  taker_payout: number;
  liquidated: Side | null;
  cet_txid: string;
  spend_txid: string | null;
}

export interface Paid {
  kind: string;
  txid: string;
  maker_payout: number;
  taker_payout: number;
  payout: number;
  final: boolean;
  height: number | null;
}

export interface Position {
  order_id: string;
  state: string;
  placed_at: number;
  changed_at: number;
  role: "maker" | "taker";
  counterparty: string;
  symbol: string;
  side: Side;
  quantity: number;
  price: string;
  taker_leverage: number;
  refusal: Problem | null;
  margin?: number;
  pool?: number;
  account?: number;
  liquidation_price?: string | null;
  contract: Contract | null;
  rollover: Rollover | null;
  closing: Closing | null;
  settlement: Settlement | null;
  paid: Paid | null;
  recovered: boolean;
  overridden: boolean;
  next?: { sentence: string; at: number | null };
  transactions?: Transaction[];
  oracle_contradicted?: boolean;
  archived_at?: number;
}

export interface NodeInfo {
  version: string;
  network: string;
  role?: "maker" | "taker";
  identity: string;
  time: number;
  calendar: number;
  /** Seconds that an hour of the calendar takes. */
  hour: number;
  /** Where transactions can be looked at, if anywhere: the id goes behind it. */
  explorer?: string | null;
  versions?: Record<string, string>;
  clock?: { offset: number | null; by: Record<string, number> };
}
