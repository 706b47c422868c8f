/** What the node's words mean, for people. */

const STATES: Readonly<Record<string, string>> = {
  ordered: "Ordered",
  "setting up": "Signing the contract",
  opening: "Opening: the lock is on its way",
  abandoning: "Given up: the lock came to nothing",
  open: "Open",
  "rolling over": "Rolling over",
  closing: "Closing",
  closed: "Closed",
  "force closing": "Force closing",
  committed: "Committed: waits for the oracle",
  settling: "Settling",
  settled: "Settled",
  refunding: "Refunding",
  refunded: "Refunded",
  payments: "Payments under way",
  punishing: "Punishing a revoked commit",
  punished: "The peer was punished",
  rejected: "Refused by the maker",
  "setup failed": "Not opened",
};

const TRANSACTIONS: Readonly<Record<string, string>> = {
  lock: "Lock",
  commit: "Commit",
  cet: "Payout (CET)",
  spend: "Payout, signed by both",
  close: "Close",
  refund: "Refund",
  punish: "Punishment",
};

const ENDINGS: Readonly<Record<string, string>> = {
  cet: "settled by the oracle's price",
  spend: "settled by the oracle's price, signed by both",
  close: "closed together",
  refund: "refunded: the oracle never spoke",
  punish: "the peer published a revoked commit",
};

export const inWords = (state: string) => STATES[state] ?? state;
export const transactionName = (kind: string) => TRANSACTIONS[kind] ?? kind;
export const ending = (kind: string) => ENDINGS[kind] ?? kind;
export const sentenceCase = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);
