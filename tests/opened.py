"""Contracts with all their signatures exchanged, on a chain judged by Bitcoin Core's consensus code."""

import os
from collections import Counter

import pytest
from attrs import evolve, field, frozen, mutable
from bitcoin.core import CBlock, CTransaction
from bitcoin.core.script import SIGVERSION_WITNESS_V0, CScript, SignatureHash
from bitcoin.core.serialize import Hash160
from btclib_secp256k1 import dsa
from btclib_secp256k1 import keys as curve

from node.regtest.consensus import BlockRejected, Chain
from protocols.contract import schnorr, signing
from protocols.contract.closing import Close, CloseNonce, Spend
from protocols.contract.funding import FundingInput
from protocols.contract.outcomes import Outcome, covering
from protocols.contract.scripts import p2tr
from protocols.contract.sighash import TxOut, signature_hash
from protocols.contract.terms import Role, Terms, Timelocks
from protocols.contract.transactions import ContractTransactions

from .contracts import WORKED
from .deals import Deal, deal, digest, p2tr_of, x_only

LOCKS = Timelocks(liquidation=2, settlement=4, refund=6)
FINE = evolve(WORKED, timelocks=LOCKS, maker_account=6_482)
TERMS = evolve(FINE, tolerance_near="0.02", tolerance_far="0.1")
"""Fewer CETs, where each of them is like any other."""
PRICE = 60_000
"""Within the settlement's range; both sides get a payout there."""
TOO_LOW = 30_000
"""The long is liquidated."""

COIN_SECRETS = {role: digest("coin key", role) for role in Role}
TAKER_COIN_KEY = curve.pubkey_from_prvkey(COIN_SECRETS[Role.TAKER])
COIN_SCRIPTS = {
    Role.MAKER: p2tr(x_only(COIN_SECRETS[Role.MAKER])),
    Role.TAKER: b"\x00\x14" + Hash160(TAKER_COIN_KEY),
}


@mutable
class World:
    """A chain with mature coins of both sides: the maker's P2TR, the taker's P2WPKH."""

    chain: Chain
    used: Counter[Role] = field(factory=Counter)

    def coin(self, role: Role) -> FundingInput:
        self.used[role] += 1
        height = 2 * self.used[role] - (1 if role is Role.MAKER else 0)
        coinbase = CBlock.deserialize(self.chain.block(height)).vtx[0]
        assert bytes(coinbase.vout[0].scriptPubKey) == COIN_SCRIPTS[role]
        return FundingInput(coinbase.GetTxid(), 0, coinbase.vout[0].nValue, COIN_SCRIPTS[role])

    def mine(self, *raw: bytes) -> None:
        before = self.chain.height
        self.chain.mine(raw)
        assert self.chain.height == before + 1

    def refusal(self, raw: bytes) -> str:
        """Why the kernel refuses a block with this transaction, in its own words."""
        with pytest.raises(BlockRejected) as caught:
            self.chain.mine([raw])
        return caught.value.reason.partition(",")[0]

    def open(self, terms: Terms = TERMS, *, events: int = 2) -> "Open":
        """A contract with all its signatures exchanged, and its lock in a block."""
        opened = Open.of(self, deal(terms, events=events, coins=self.coin))
        self.mine(signing.complete_lock(opened.deal.plan, lock_witnesses(opened.deal)))
        return opened


def sign_p2wpkh(tx: CTransaction, index: int, value: int, *, hash_type: int = 1) -> tuple[bytes, bytes]:
    code = CScript(b"\x76\xa9\x14" + Hash160(TAKER_COIN_KEY) + b"\x88\xac")
    message = SignatureHash(code, tx, index, hash_type, amount=value, sigversion=SIGVERSION_WITNESS_V0)
    return dsa.sign(message, COIN_SECRETS[Role.TAKER]) + bytes((hash_type,)), TAKER_COIN_KEY


def lock_witnesses(deal: Deal) -> dict[int, tuple[bytes, ...]]:
    transactions = ContractTransactions(deal.plan)
    lock, spent = transactions.lock, transactions.lock_prevouts
    return {
        0: (schnorr.sign(COIN_SECRETS[Role.MAKER], signature_hash(lock, 0, spent)),),
        1: sign_p2wpkh(lock, 1, spent[1].value),
    }


@frozen
class Open:
    """An open contract: what both sides hold of each other."""

    world: World
    deal: Deal
    transactions: ContractTransactions
    held: dict[Role, signing.Signatures]
    """What each role received."""
    commit_held: dict[Role, bytes]

    @classmethod
    def of(cls, world: World, deal: Deal) -> "Open":
        held, commits = {}, {}
        for role in Role:
            fund = deal.keys[role.other].fund
            held[role] = signing.sign_contract(deal.plan, role.other, fund)
            commits[role] = signing.sign_commit(deal.plan, role.other, fund)
            signing.verify_contract(deal.plan, role.other, held[role])
            signing.verify_commit(deal.plan, role.other, commits[role])
        return cls(world, deal, ContractTransactions(deal.plan), held, commits)

    def commit(self, role: Role) -> bytes:
        return signing.complete_commit(self.deal.plan, role, self.deal.keys[role], self.commit_held[role])

    def publish(self, role: Role) -> bytes:
        """The commit, published by a role, in a block."""
        raw = self.commit(role)
        self.world.mine(raw)
        return raw

    def outcome(self, price: int, *, event: int = -1) -> Outcome:
        found = covering(self.transactions.outcomes, event % len(self.transactions.by_event), price)
        assert found is not None
        return found

    def cet(self, role: Role, outcome: Outcome, scalar: bytes) -> bytes:
        return signing.complete_cet(
            self.deal.plan,
            role,
            self.deal.keys[role].fund,
            outcome,
            peer_signature=self.held[role].of(self.transactions, outcome),
            opening=scalar,
        )

    def refund(self, role: Role) -> bytes:
        return signing.complete_refund(self.deal.plan, role, self.deal.keys[role].fund, self.held[role].refund)

    def together(self, price: int) -> bytes:
        """The cooperative spend: the outputs of the attested price's CET, without its lock."""
        spend = Spend(self.deal.plan, self.outcome(price))
        signatures = {role: spend.sign(self.deal.keys[role].fund) for role in Role}
        return spend.complete(Role.MAKER, signatures[Role.MAKER], signatures[Role.TAKER])

    def close(self, price: int = PRICE) -> bytes:
        """Both keys spend the lock together, at an agreed price."""
        close = Close(self.deal.plan, str(price))
        funds = {role: self.deal.keys[role].fund for role in Role}
        nonces = {role: CloseNonce(close, role, funds[role], os.urandom) for role in Role}
        sessions = {role: nonces[role].meet(nonces[role.other].public) for role in Role}
        partials = {role: sessions[role].sign(funds[role]) for role in Role}
        return sessions[Role.MAKER].complete(partials[Role.MAKER], partials[Role.TAKER])

    def punish(self, cheat: Role, published: bytes, *, fee: int) -> bytes:
        """The whole of a revoked commit, as `cheat` published it, to the other side."""
        publish = signing.recover_publish_secret(self.deal.plan, cheat.other, published, self.commit_held[cheat])
        assert publish is not None
        return signing.punish(
            self.deal.plan,
            cheat.other,
            self.deal.keys[cheat.other].fund,
            publish_secret=publish,
            revoke_secret=self.deal.keys[cheat].revoke,
            script=p2tr_of("safe"),
            fee=fee,
        )

    @property
    def spent(self) -> list[TxOut]:
        """The commit output."""
        return [self.transactions.commit_outputs[0]]


def paid(raw: bytes) -> list[tuple[int, bytes]]:
    return [(each.nValue, bytes(each.scriptPubKey)) for each in CTransaction.deserialize(raw).vout]
