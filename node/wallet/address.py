"""Addresses (BIP173, BIP350) and the scripts they stand for."""

import bdkpython as bdk

from protocols.errors import LocalError

NETWORKS = {"bitcoin": bdk.Network.BITCOIN, "signet": bdk.Network.SIGNET, "regtest": bdk.Network.REGTEST}
"""BDK's network by the name that the configuration uses."""


def to_address(script: bytes, network: str) -> str:
    """The address of an output script. Raises `LocalError` (``no_address``) for a script that has none."""
    try:
        return str(bdk.Address.from_script(bdk.Script(script), NETWORKS[network]))
    except bdk.FromScriptError as error:
        raise LocalError("no_address", f"script {script.hex()}: there is no address for it") from error


def to_script(address: str, network: str) -> bytes:
    """The output script of an address. Raises `LocalError` (``bad_address``), also for another network's address."""
    try:
        return bytes(bdk.Address(address, NETWORKS[network]).script_pubkey().to_bytes())
    except bdk.AddressParseError as error:
        raise LocalError(
            "bad_address", f"address {address[:100]!r}: a bitcoin address of {network} is allowed"
        ) from error
