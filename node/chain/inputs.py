"""Whether inputs that a peer wants to bring into a lock are there: in our own view of the chain, not in its words."""

from collections.abc import Sequence

from node.chain.electrum import ElectrumClient, parse_transaction
from node.chain.session import ServerError
from protocols.contract.funding import FundingInput
from protocols.errors import RemoteProtocolError

COINBASE_MATURITY = 100
"""Confirmations that a coinbase needs before it may be spent in the next block."""


async def check_inputs(client: ElectrumClient, inputs: Sequence[FundingInput], min_conf: int = 1) -> None:
    """Raise `RemoteProtocolError` ``bad_input`` naming the first input that is not an unspent output of the stated
    value and script with `min_conf` confirmations (a coinbase: 100), and why; `WorldError` if the chain server cannot
    be asked. The transaction and its block are proven; that nothing spends the output is the server's word.

    Kinds of scripts, repetitions and the number of inputs are the protocol's to check."""
    for one in inputs:
        reason = await _fault(client, one, min_conf)
        if reason is not None:
            raise RemoteProtocolError("bad_input", f"input {one.outpoint} {reason}")


async def _fault(client: ElectrumClient, one: FundingInput, min_conf: int) -> str | None:
    try:
        tx = parse_transaction(await client.transaction(one.txid))
    except ServerError:
        return "spends a transaction that the chain server does not know"
    if not 0 <= one.vout < len(tx.vout):
        return f"does not exist: its transaction has {len(tx.vout)} outputs"
    output = tx.vout[one.vout]
    if output.nValue != one.value:
        return f"is said to hold {one.value} sat and holds {output.nValue}"
    if bytes(output.scriptPubKey) != one.script:
        return f"is said to have the script {one.script.hex()} and has {bytes(output.scriptPubKey).hex()}"
    height = dict(await client.history(one.script, prove=(one.txid,))).get(one.txid, 0)
    confirmations = client.tip.height - height + 1 if height else 0
    needed = max(min_conf, COINBASE_MATURITY) if tx.is_coinbase() else min_conf
    if confirmations < needed:
        kind = "a coinbase" if tx.is_coinbase() else "it"
        return f"has {confirmations} confirmations, {kind} needs {needed}"
    if one.outpoint not in await client.unspent(one.script):
        return "is spent already"
    return None
