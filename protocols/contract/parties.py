"""What the peer contributes to a contract, judged before anything is signed (contract.md, "Inputs from the peer")."""

from ..errors import RemoteProtocolError
from .funding import MAX_INPUTS, BadScript, Underfunded, is_native
from .numbers import MAX_MONEY
from .terms import Role
from .transactions import ContractPlan, ContractTransactions, Party


def check_scripts(party: Party) -> None:
    """Refuse what the peer contributes when its inputs or scripts could never do, whatever the contract.

    That its inputs exist, are confirmed and unspent is for our own view of the chain to say. Raises
    `RemoteProtocolError` "bad_input" or "bad_script".
    """
    if not 1 <= len(party.inputs) <= MAX_INPUTS:
        raise _bad_input(f"there are {len(party.inputs)} inputs, allowed are 1 to {MAX_INPUTS}")
    for each in party.inputs:
        if len(each.txid) != 32 or not 0 <= each.vout < 2**32 or not 0 < each.value <= MAX_MONEY:
            raise _bad_input(f"input {each.outpoint} of {each.value} sat cannot exist")
        if not is_native(each.script):
            raise _bad_input(f"input {each.outpoint}: {BadScript(each.script)}")
    if len({each.outpoint for each in party.inputs}) != len(party.inputs):
        raise _bad_input("an input is named twice")
    for name, script in (("change_script", party.change_script), ("payout_script", party.payout_script)):
        if not is_native(script):
            raise RemoteProtocolError("bad_script", f"{name}: {BadScript(script)}")


def check_party(plan: ContractPlan, theirs: Role) -> None:
    """Refuse what only shows with both sides together: a coin or script of ours or the contract's, too little money.

    Comes after `check_scripts`. Raises `RemoteProtocolError` "bad_input", "bad_script" or "underfunded".
    """
    peer, own = plan.party(theirs), plan.party(theirs.other)
    if {each.outpoint for each in peer.inputs} & {each.outpoint for each in own.inputs}:
        raise _bad_input("an input is one of ours")
    transactions = ContractTransactions(plan)
    taken = {own.change_script, own.payout_script, *(each.script for each in own.inputs)}
    taken |= {transactions.lock_output.script, transactions.commit_output.script}
    for name, script in (("change_script", peer.change_script), ("payout_script", peer.payout_script)):
        if script in taken:
            raise RemoteProtocolError("bad_script", f"{name} {script.hex()} is ours or the contract's")
    if peer.change_script == peer.payout_script:
        raise RemoteProtocolError(
            "bad_script", "change_script and payout_script are one: payouts could not be told apart"
        )
    try:
        transactions.change(theirs)
    except Underfunded as error:
        raise RemoteProtocolError("underfunded", str(error)) from None


def _bad_input(sentence: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad_input", sentence)
