"""The API for other machines: only by TLS or with the user's word, and under the names that were given."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node.clock import Clock
from node.config import HostPort, TakerConfig, WebTable, load
from node.errors import ConfigError
from node.health import State
from node.supervision import Supervisor
from node.web.door import Door
from node.web.server import run_door
from node.web.sockets import bind_api, url_of

KEYS = "22" * 32
ORACLE = {"url": "http://127.0.0.1:1", "announcement_key": KEYS, "attestation_key": KEYS}


Signer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def signed(
    name: str, key: ec.EllipticCurvePrivateKey, by: Signer | None = None, *, authority: bool = False
) -> x509.Certificate:
    """A certificate for that name, by that authority or by itself."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signing = (by[0].subject, by[1]) if by is not None else (subject, key)
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(signing, hashes.SHA256())
    )


def certificate(folder: Path, name: str = "node.example") -> tuple[Path, Path]:
    """A certificate that signed itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = signed(name, key)
    cert, secret = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert, secret


def config(api: str, web: dict[str, Any]) -> TakerConfig:
    flags = {"network": "regtest", "electrum": "127.0.0.1:1", "oracle": ORACLE, "api": api, "web": web}
    return load(TakerConfig, environ={}, flags=flags)


@pytest.mark.parametrize("api", ["0.0.0.0:1", "192.0.2.7:1", "[::]:1", "node.example:1"])
def test_others_are_served_by_tls_or_with_the_users_word(api: str) -> None:
    with pytest.raises(ConfigError, match=r"web\.cert and web\.key"):
        config(api, {})
    with pytest.raises(ConfigError, match="belong together"):
        config(api, {"cert": "cert.pem"})
    assert str(config(api, {"insecure": True}).api) == api
    assert str(config(api, {"cert": "cert.pem", "key": "key.pem"}).api) == api


def test_this_machine_needs_nothing() -> None:
    assert config("localhost:1", {}).api == HostPort("127.0.0.1", 1)


@pytest.mark.parametrize("host", ["Node.example", "a/b", "", "http://a"])
def test_what_is_no_name_of_a_host(host: str) -> None:
    with pytest.raises(ConfigError, match="host name"):
        config("127.0.0.1:1", {"hosts": [host]})


async def test_by_tls_the_page_has_its_name_and_cookies_are_secure(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    web = WebTable(cert=cert, key=key, hosts=("node.example",))
    clock = Clock()
    supervisor = Supervisor(clock=clock)
    with bind_api(HostPort("127.0.0.1", 0)) as listener:
        door = Door(tmp_path, listener=listener, supervisor=supervisor, clock=clock, warnings=[], web=web)

        async def run(*, report: Any, task_status: trio.TaskStatus[None]) -> None:
            await run_door(door, listener, report=report, task_status=task_status)

        supervisor.reporting("api", run, patience=0.5)
        url = url_of(listener, tls=True)
        assert (tmp_path / "api.url").read_text().strip() == url
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            trusted = ssl.create_default_context(cafile=str(cert))
            trusted.check_hostname = False
            port = listener.getsockname()[1]
            async with httpx2.AsyncClient(base_url=url, verify=trusted) as client:
                for host, status in ((f"node.example:{port}", 200), ("node.example", 200), ("evil.example", 421)):
                    assert (await client.get("/", headers={"Host": host})).status_code == status
                own = {"Host": f"node.example:{port}", "Origin": f"https://node.example:{port}"}
                signed_in = await client.post("/api/v1/session", json={"token": door.token}, headers=own)
                assert "Secure" in signed_in.headers["set-cookie"]
                plain = {**own, "Origin": f"http://node.example:{port}"}
                assert (await client.post("/api/v1/session", json={}, headers=plain)).status_code == 403
            await trio.sleep(1.2)  # it asks itself by TLS, too: without an answer it would be ended as stuck
            assert supervisor["api"].state is State.HEALTHY
            assert supervisor["api"].health.failures == 0
            nursery.cancel_scope.cancel()
