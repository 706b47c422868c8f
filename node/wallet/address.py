"""Addresses (BIP173, BIP350) and the scripts they stand for."""

import bdkpython as bdk

from node.networks import NETWORKS
from protocols.errors import LocalError

BDK = {name: bdk.Network[network.bdk] for name, network in NETWORKS.items()}
"""BDK's network by the name that everybody else uses."""


def to_address(script: bytes, network: str) -> str:
    """The address of an output script. Raises `LocalError` (``no_address``) for a script that has none."""
    try:
        return str(bdk.Address.from_script(bdk.Script(script), BDK[network]))
    except bdk.FromScriptError as error:
        raise LocalError("no_address", f"script {script.hex()}: there is no address for it") from error


def to_script(address: str, network: str) -> bytes:
    """The output script of an address. Raises `LocalError` (``bad_address``), also for another network's address,
    which it names; signet and testnet4 write theirs alike."""
    try:
        return bytes(_parse(address, network).script_pubkey().to_bytes())
    except bdk.AddressParseError as error:
        others = " or ".join(other for other in BDK if _is_of(address, other))
        what = f"it is of {others}; " if others else ""
        raise LocalError(
            "bad_address", f"address {address[:100]!r}: {what}a bitcoin address of {network} is allowed"
        ) from error


def _parse(address: str, network: str) -> bdk.Address:
    return bdk.Address(address, BDK[network])


def _is_of(address: str, network: str) -> bool:
    try:
        _parse(address, network)
    except bdk.AddressParseError:
        return False
    return True
