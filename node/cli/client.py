"""The API of a node, asked from a command line: where it is, its token, and what its answers mean for whoever typed."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from attrs import field, frozen

from node import files
from node.cli.output import progress
from protocols.errors import LocalError, WorldError

DATA_VARIABLE = "CFDNODE_DATA"
CA_VARIABLE = "CFDNODE_CA"
ANSWERED_WITHIN = 10.0
NOT_SENT = "broadcast_rejected"
"""The one code of a part that failed which says that nothing was done."""
REPAIRED_WITHIN = 1800.0
"""Seconds that a node's API has for its answer; the wallet may have to look through the whole chain."""


class OutcomeUnknown(WorldError):
    """A request may have been taken: its answer did not come."""


@frozen
class Trust:
    """The certificates of a file, and no other."""

    file: Path
    pinned: bool = False
    """It is the very certificate that is served, from the node's own data directory: whatever name it is for."""

    def context(self) -> ssl.SSLContext:
        """Raises LocalError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self.file)
        except OSError as error:  # ssl.SSLError is one, without a name for what is wrong
            why = "there is no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
            raise LocalError("bad_ca", f"{self.file}: {why}") from None
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # also one that another authority signed
        context.check_hostname = not self.pinned
        return context


@frozen
class Client:
    """One node. Every question raises LocalError when the node refuses, WorldError when it does not answer."""

    url: str
    token: str = field(repr=False)
    trust: Trust | None = None
    """By https; None: whom this machine trusts."""

    def get(self, path: str, query: Mapping[str, object] | None = None) -> Any:
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        return self._ask("GET", f"{path}?{urlencode(asked)}" if asked else path)

    def post(
        self,
        path: str,
        said: Mapping[str, object] | None = None,
        *,
        key: str | None = None,
        same: str = "",
        within: float = ANSWERED_WITHIN,
    ) -> Any:
        """With a `key`, the same request again does nothing twice; `same` are the flags that ask the same again."""
        try:
            return self._ask("POST", path, said, key, within)
        except OutcomeUnknown as error:
            again = f"; with {same or f'--key {key}'} it is asked again, and nothing is done twice" if key else ""
            raise OutcomeUnknown(
                "unknown", f"{error.sentence}; whether it did what it was asked is not known{again}"
            ) from None

    def put(self, path: str, said: Mapping[str, object]) -> Any:
        return self._wish("PUT", path, said)

    def patch(self, path: str, said: Mapping[str, object]) -> Any:
        return self._wish("PATCH", path, said)

    def delete(self, path: str) -> Any:
        return self._wish("DELETE", path)

    def _wish(self, method: str, path: str, said: Mapping[str, object] | None = None) -> Any:
        """How something is to be: once or twice, it comes to the same."""
        try:
            return self._ask(method, path, said)
        except OutcomeUnknown as error:
            again = "whether it did what it was asked is not known; asked again, nothing is done twice"
            raise OutcomeUnknown("unknown", f"{error.sentence}; {again}") from None

    def _ask(
        self,
        method: str,
        path: str,
        said: Mapping[str, object] | None = None,
        key: str | None = None,
        within: float = ANSWERED_WITHIN,
    ) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        connection = _connection(self.url, self.trust, within)
        sent = False
        try:
            with progress(f"asking {self.url}"):
                connection.connect()
                sent = True
                body = json.dumps(said) if said is not None else None
                connection.request(method, f"/api/v1/{path}", body, headers)
                response = connection.getresponse()
                answer = json.loads(response.read() or b"null")
        except ssl.SSLCertVerificationError as error:
            raise WorldError("not_trusted", f"{self.url}: {self._not_trusted(error)}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = f"{self.url}: no answer from a node: {error}"
            if sent and method != "GET":
                raise OutcomeUnknown("unknown", why) from None
            raise WorldError("unreachable", why) from None
        finally:
            connection.close()
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            problem = answer if isinstance(answer, dict) else {}
            code, sentence = str(problem.get("code", "refused")), str(problem.get("detail", response.reason))
            failed = key is not None and response.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR and code != NOT_SENT
            if failed or code == "outcome_unknown":
                raise OutcomeUnknown("unknown", sentence)
            raise LocalError(code, sentence)
        return answer

    def _not_trusted(self, error: ssl.SSLCertVerificationError) -> str:
        why = f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
        if self.trust is None:
            return f"{why}; --ca FILE names the one to trust"
        return f"{why}; trusted is what is in {self.trust.file}"


def _connection(url: str, trust: Trust | None, within: float) -> http.client.HTTPConnection:
    try:
        place = urlsplit(url)
        hostname, port = place.hostname, place.port
        if not hostname or place.scheme not in ("http", "https"):
            raise ValueError
    except ValueError:
        raise LocalError("bad_flags", f"the API's URL {url!r} is not http://host:port") from None
    if place.scheme == "https":
        context = trust.context() if trust is not None else ssl.create_default_context()
        return http.client.HTTPSConnection(hostname, port or 443, timeout=within, context=context)
    return http.client.HTTPConnection(hostname, port or 80, timeout=within)


def node_at(
    command: str,
    data: Path | None,
    api: str | None = None,
    token_file: Path | None = None,
    ca: Path | None = None,
) -> Client:
    """The node of the flags that every such command has, or of the environment's data directory."""
    if data is None and (named := os.environ.get(DATA_VARIABLE)):
        data = Path(named)
    if data is None and (api is None or token_file is None):
        raise LocalError("bad_flags", f"{command}: give --data, or --api and --token-file")
    folder = data or Path()
    url = api or contents(files.url_file(folder), "is the node running?")
    token = contents(token_file or files.token_file(folder), "the node writes it on its first start")
    return Client(url, token, _trust(url, folder if api is None else None, ca))


def _trust(url: str, folder: Path | None, ca: Path | None) -> Trust | None:
    """What the flag says, else the certificate that a node of this machine keeps in its `folder`, else the variable."""
    if not url.lower().startswith("https:"):
        if ca is not None:
            raise LocalError("bad_flags", f"--ca: the API at {url} is not served by https")
        return None
    if ca is not None:
        return Trust(ca)
    if folder is not None and (kept := files.certificate_file(folder)).exists():
        return Trust(kept, pinned=True)
    named = os.environ.get(CA_VARIABLE)
    return Trust(Path(named)) if named else None


def contents(path: Path, hint: str) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        raise LocalError("no_node", f"{path}: {reason}; {hint}") from None


def order_id_in(text: str) -> str:
    if re.fullmatch(r"[0-9a-f]{32}", text) is None:
        raise LocalError("bad_order_id", f"order id {text[:80]!r} is not 32 hex digits in lower case")
    return text


def key_or_new(key: str | None) -> str:
    """The idempotency key that the user repeats, or a new one."""
    if key is None:
        return secrets.token_hex(16)
    if re.fullmatch(r"[!-~]{1,128}", key) is None:
        raise LocalError("bad_key", f"--key: {key[:80]!r} is not 1 to 128 printable characters without spaces")
    return key
