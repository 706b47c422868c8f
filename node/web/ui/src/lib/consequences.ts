/** What ending a service means for the user, while it is down. */
const OF_STOPPING: Record<string, string> = {
  store: "Nothing can be recorded, so nothing is opened, rolled over or closed.",
  positions: "Nothing is opened, rolled over or closed, and no contract is looked after.",
  chain: "Confirmations are not seen, and transactions are not sent; a force close waits.",
  "chain-monitor": "What happens on the chain is not seen; a force close waits.",
  broadcaster: "Transactions are not sent; a force close waits.",
  "wallet-chain": "The wallet does not learn of new coins.",
  wallet: "Nothing is opened and no coins are sent.",
  contracts: "Contracts are not followed on the chain, and an old one that a peer publishes goes unseen.",
  punishing: "A peer that publishes an old contract is not punished.",
  attestations: "Expired positions are not settled.",
  oracle: "Nothing is opened or rolled over, and what expires is not settled.",
  backup: "Nothing that needs a backup first is signed: nothing is opened, rolled over or closed.",
  prices: "Prices grow old: after two minutes nothing is opened or closed at them.",
  network: "Peers are not reached. Force close still works.",
  listener: "No taker can connect.",
  quoting: "Offers do not follow the market.",
  offers: "Offers cannot be set or withdrawn.",
  rollovers: "Positions are not rolled over: they settle at their expiry.",
  settlements: "Closes that are under way stand still.",
  setups: "Orders that are under way stand still.",
  deadlines: "A close or rollover that stays half done is not resolved by force.",
  bumping: "Fees of transactions that are stuck are not raised.",
  payments: "What was sent from the wallet is not looked after, and nothing more can be sent after a start.",
};

export function ofStopping(name: string): string {
  if (name.startsWith("maker-")) return "This maker’s offers and its answers do not arrive.";
  return OF_STOPPING[name] ?? "What it does is not done until it is started again.";
}
