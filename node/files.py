"""Where things are in a node's data directory; what others own, they name themselves."""

from pathlib import Path


def seed_file(data: Path) -> Path:
    """The seed words; the one file that cannot be made again."""
    return data / "seed"


def token_file(data: Path) -> Path:
    """The API's token, readable by the owner alone."""
    return data / "api.token"


def network_file(data: Path) -> Path:
    """The name of the network that the directory belongs to, since the first node that ran on it."""
    return data / "network"


def role_file(data: Path) -> Path:
    """Whether it is a maker's directory or a taker's, since the first node that ran on it."""
    return data / "role"


def store_file(data: Path) -> Path:
    """The events."""
    return data / "events.sqlite"


def backup_folder(data: Path) -> Path:
    """Where the positions' backup is kept, unless the configuration names a better place."""
    return data / "backup"


def url_file(data: Path) -> Path:
    """Where the API of the node that runs on this directory was last served."""
    return data / "api.url"
