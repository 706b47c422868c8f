"""The networks that a node can live on: one table of all that differs between them.

``mainnet``, ``signet``, ``testnet4`` and ``regtest`` are their names everywhere that people, peers and files meet them.
"""

from attrs import frozen

from protocols.contract.terms import REGTEST_TIMELOCKS, Timelocks

_TIMELOCKS = Timelocks()


@frozen(kw_only=True)
class Network:
    """What sets a network apart."""

    name: str
    genesis: bytes
    """Hash of the first block, internal byte order."""
    easiest_bits: int
    """The largest target allowed, in its compact form."""
    retargets: bool = True
    """Whether the difficulty changes at all."""
    bip94: bool = False
    """BIP94's rules: a block more than 20 minutes after the one before has the easiest target, which neither the blocks
    behind it nor the next period follow, and a period begins at most 600 s before the one before it ended."""
    timelocks: Timelocks = _TIMELOCKS
    """The relative locks of contracts: the maker offers them, the taker takes no others."""
    bdk: str
    """The network's name in BDK's enumeration."""
    coin_type: int = 1
    """Of derivation paths (SLIP44): 0 where coins are worth something, 1 elsewhere."""
    electrum_servers: int = 1
    """On how many hosts there must be a chain server at least."""
    port_offset: int
    """What is added to the default ports, so that nodes of several networks live beside each other."""
    explorer: str | None = None
    """Where people may look a transaction up: its id follows. Nothing is asked there but by a link that is clicked."""
    warning: str = ""
    """Said by every node of this network to whoever looks, if not empty."""

    @property
    def genesis_hex(self) -> str:
        """As people and servers write it."""
        return self.genesis[::-1].hex()


def _genesis(text: str) -> bytes:
    return bytes.fromhex(text)[::-1]


NETWORKS = {
    network.name: network
    for network in (
        Network(
            name="mainnet",
            genesis=_genesis("000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"),
            easiest_bits=0x1D00FFFF,
            explorer="https://mempool.space/tx/",
            bdk="BITCOIN",
            coin_type=0,
            electrum_servers=2,
            port_offset=0,
            warning="THIS SOFTWARE IS YOUNG, AND THIS IS MAINNET: use only coins that you can afford to lose",
        ),
        Network(
            name="signet",
            genesis=_genesis("00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6"),
            easiest_bits=0x1E0377AE,
            explorer="https://mempool.space/signet/tx/",
            bdk="SIGNET",
            port_offset=30_000,
        ),
        Network(
            name="testnet4",
            genesis=_genesis("00000000da84f2bafbbc53dee25a72ae507ff4914b867c565be350b0da8bf043"),
            easiest_bits=0x1D00FFFF,
            bip94=True,
            explorer="https://mempool.space/testnet4/tx/",
            bdk="TESTNET4",
            port_offset=40_000,
        ),
        Network(
            name="regtest",
            genesis=_genesis("0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206"),
            easiest_bits=0x207FFFFF,
            retargets=False,
            timelocks=REGTEST_TIMELOCKS,
            bdk="REGTEST",
            port_offset=10_000,
        ),
    )
}

NAMES = f"{', '.join(list(NETWORKS)[:-1])} and {list(NETWORKS)[-1]}"
"""For sentences."""


def chain_named(genesis: object) -> str:
    """What to call the chain whose first block is `genesis`, as servers write it."""
    for network in NETWORKS.values():
        if genesis == network.genesis_hex:
            return network.name
    return f"the chain with the first block {str(genesis)[:64]!r}"
