"""Which of our coins pay for our share of a lock: pure, and the same for the same coins."""

from bisect import bisect_left
from collections.abc import Iterable

from protocols.contract.funding import MAX_INPUTS, FundingInput, input_weight, side_fee
from protocols.errors import LocalError


class InsufficientFunds(LocalError):
    """`have` satoshis in at most `MAX_INPUTS` coins that may be spent now, `need` with the fee for spending those."""

    def __init__(self, have: int, need: int) -> None:
        super().__init__(
            "insufficient_funds",
            f"the wallet has {have} sat that it may spend now (confirmed, not reserved, in at most {MAX_INPUTS} "
            f"coins), {need} sat with the fee are needed",
        )
        self.have = have
        self.need = need


def select(coins: Iterable[FundingInput], needed: int, fee_rate: int) -> tuple[FundingInput, ...]:
    """The coins to spend for `needed` satoshis and our part of the lock's own fee at `fee_rate` sat/vB.

    As few as will do, so that the others stay free for the next lock; of the coins that could be the last, the
    smallest. What is left over is the contract's to turn into change or, as dust, into fee. Raises
    `InsufficientFunds`.
    """

    def worth(coin: FundingInput) -> int:
        """Quarter satoshis that remain of a coin when its own input is paid for."""
        return 4 * coin.value - fee_rate * input_weight(coin.script)

    def missing(chosen: list[FundingInput]) -> int:
        fee = side_fee(fee_rate, [coin.script for coin in chosen], None)
        return needed + fee - sum(coin.value for coin in chosen)

    rest = sorted((coin for coin in coins if worth(coin) > 0), key=lambda coin: (worth(coin), coin.outpoint))
    chosen: list[FundingInput] = []
    while rest and len(chosen) < MAX_INPUTS:
        last = bisect_left(rest, True, key=lambda coin: missing([*chosen, coin]) <= 0)
        if last < len(rest):
            return (*chosen, rest[last])
        chosen.append(rest.pop())
    have = sum(coin.value for coin in chosen)
    raise InsufficientFunds(have, have + missing(chosen))
