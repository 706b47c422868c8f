"""Where things are in a node's data directory; what others own, they name themselves."""

import os
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


def certificate_file(data: Path) -> Path:
    """The certificate (PEM) by which that API is served, if it is by TLS: programs of this machine trust it alone."""
    return data / "api.cert"


def password_file(data: Path) -> Path:
    """The hash of the password for the page, readable by the owner alone."""
    return data / "api.password"


def sessions_file(data: Path) -> Path:
    """Who is signed in at the page: hashes, readable by the owner alone."""
    return data / "api.sessions"


def answers_file(data: Path) -> Path:
    """What was asked of the API under a key, and answered."""
    return data / "api.answers"


def makers_file(data: Path) -> Path:
    """The makers that a taker's user added or took away."""
    return data / "makers.json"


def payments_folder(data: Path) -> Path:
    """What was sent from the wallet and the chain does not have for good."""
    return data / "payments"


def policy_file(data: Path) -> Path:
    """What a maker's operator said of policy and rates, through the API."""
    return data / "policy.json"


def write_private(path: Path, text: str) -> None:
    """Put `text` in the place of what `path` holds, whole or not at all, readable by the owner alone (0600); the
    directory is made if need be. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
