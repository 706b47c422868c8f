"""Coin selection: pays enough, with as few coins as will do, and says what is missing."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.wallet.selection import InsufficientFunds, select
from protocols.contract.funding import MAX_INPUTS, FundingInput, change_value, input_weight, side_fee
from protocols.contract.scripts import p2tr

P2TR = p2tr(bytes(32))
P2WPKH = b"\x00\x14" + bytes(20)


def coin(number: int, value: int, script: bytes = P2TR) -> FundingInput:
    return FundingInput(number.to_bytes(32, "big"), number, value, script)


def worth(coin: FundingInput, fee_rate: int) -> int:
    """What a coin brings, in quarter satoshis."""
    return 4 * coin.value - fee_rate * input_weight(coin.script)


def pays(coins: list[FundingInput], needed: int, fee_rate: int) -> bool:
    return sum(each.value for each in coins) >= needed + side_fee(fee_rate, [each.script for each in coins], None)


wallets = st.lists(
    st.tuples(st.integers(1, 200_000) | st.sampled_from([5_000, 100_000]), st.sampled_from([P2TR, P2WPKH])), max_size=40
).map(lambda values: [coin(number, *each) for number, each in enumerate(values)])


@given(wallets, st.integers(0, 2_000_000), st.integers(2, 300), st.randoms(use_true_random=False))
def test_enough_with_as_few_coins_as_will_do(
    coins: list[FundingInput], needed: int, fee_rate: int, shuffler: random.Random
) -> None:
    best = sorted(coins, key=lambda each: worth(each, fee_rate), reverse=True)
    if not any(pays(best[:count], needed, fee_rate) for count in range(1, MAX_INPUTS + 1)):
        with pytest.raises(InsufficientFunds) as caught:
            select(coins, needed, fee_rate)
        assert caught.value.have < caught.value.need
        return
    chosen = select(coins, needed, fee_rate)
    assert 1 <= len(chosen) <= MAX_INPUTS
    assert len({(each.txid, each.vout) for each in chosen}) == len(chosen)
    assert set(chosen) <= set(coins)
    change_value(chosen, needed, fee_rate, P2TR)  # raises if they do not pay for their side
    assert not pays(best[: len(chosen) - 1], needed, fee_rate)
    *others, last = chosen
    smaller = [each for each in coins if worth(each, fee_rate) < worth(last, fee_rate)]
    assert not any(pays([*others, each], needed, fee_rate) for each in smaller)
    shuffled = shuffler.sample(coins, len(coins))
    assert select(shuffled, needed, fee_rate) == chosen


def test_the_smallest_coin_that_will_do_alone() -> None:
    coins = [coin(1, 50_000), coin(2, 10_000), coin(3, 12_000)]
    fee = side_fee(2, [P2TR], None)
    assert select(coins, 12_000 - fee, 2) == (coins[2],)
    assert select(coins, 12_001 - fee, 2) == (coins[0],)


def test_a_coin_that_does_not_pay_for_its_own_input_is_left_alone() -> None:
    with pytest.raises(InsufficientFunds) as caught:
        select([coin(1, 11_499), coin(2, 20_000)], 20_000, 200)  # an input of 57.5 vB costs 11 500 sat
    assert caught.value.have == 20_000
    assert caught.value.need == 20_000 + side_fee(200, [P2TR], None)


def test_what_is_missing_is_said() -> None:
    with pytest.raises(InsufficientFunds, match="insufficient_funds") as caught:
        select([], 5_000, 2)
    assert (caught.value.have, caught.value.need) == (0, 5_000 + side_fee(2, [], None))
    assert "0 sat" in caught.value.sentence
    assert str(caught.value.need) in caught.value.sentence
