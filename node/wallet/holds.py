"""Coins that somebody in this process is about to spend and that nothing on disk or in a mempool says so of yet."""

import trio
from attrs import Factory, define

from protocols.contract.funding import OutPoint


@define(eq=False)
class CoinHolds:
    """By the order id of who holds them: a setup under way, or a position whose fees are being raised."""

    lock: trio.Lock = Factory(trio.Lock)
    """Held from choosing coins until they are held here, so that the same are never chosen twice."""
    _held: dict[bytes, frozenset[OutPoint]] = Factory(dict)
    _paid: dict[bytes, frozenset[OutPoint]] = Factory(dict)
    """By the id of the payment out of the wallet."""

    @property
    def holders(self) -> frozenset[bytes]:
        return frozenset(self._held)

    def all(self, but: bytes | None = None) -> frozenset[OutPoint]:
        """All that are held; `but` names a holder whose coins are left out."""
        held = {**self._held, **self._paid}
        return frozenset(coin for holder, coins in held.items() if holder != but for coin in coins)

    def payments(self) -> frozenset[OutPoint]:
        """Those that payments have."""
        return frozenset(coin for coins in self._paid.values() for coin in coins)

    def hold(self, order_id: bytes, coins: frozenset[OutPoint]) -> None:
        """From now on the holder has these, and no others."""
        self._held[order_id] = coins

    def release(self, order_id: bytes) -> None:
        """At the end of a setup, when an event says whether its coins are reserved; when no fee is to be raised."""
        self._held.pop(order_id, None)

    def pay(self, txid: bytes, coins: frozenset[OutPoint]) -> None:
        """A payment has these, though the wallet may not see it."""
        self._paid[txid] = coins

    def paid(self, txid: bytes) -> None:
        """The chain has the payment, or nobody wants it."""
        self._paid.pop(txid, None)
