"""The page, as files: the one that was built into ``static``, or a plain one that shows the health.

They hold nothing that is secret, so they need no token; what they show comes through the API, which does.
"""

from __future__ import annotations

from pathlib import Path

import trio
from starlette.responses import Response

STATIC = Path(__file__).with_name("static")
"""What the build of the page made; not there in a checkout that was not built."""
PLAIN = Path(__file__).with_name("plain")

KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
"""Other files are not served."""
DOCS = "/api/v1/docs"
NAMES = {"/": "index.html", DOCS: "docs.html"}
"""What has a path of its own."""

FOR_EVER = "public, max-age=31536000, immutable"
"""For what is in ``assets``: the build names those files by their contents."""
ASK_AGAIN = "no-cache"


class Page:
    """The files of the build, and those of the plain page where that has none of the name."""

    def __init__(self, built: Path = STATIC, plain: Path = PLAIN) -> None:
        self._built = built
        self._plain = plain

    async def answer(self, path: str) -> Response | None:
        """The file that a request's path names; None if there is none. The build is looked for at each request."""
        found = await trio.to_thread.run_sync(self._read, path)
        if found is None:
            return None
        content, kind = found
        cache = FOR_EVER if path.startswith("/assets/") else ASK_AGAIN
        return Response(content, headers={"Content-Type": kind, "Cache-Control": cache})

    def _read(self, path: str) -> tuple[bytes, str] | None:
        name = NAMES.get(path, path.removeprefix("/"))
        kind = KINDS.get(Path(name).suffix)
        if kind is None or "\0" in name:
            return None
        for folder in (self._built, self._plain):
            file = (folder / name).resolve()
            if file.is_relative_to(folder.resolve()) and file.is_file():
                return file.read_bytes(), kind
        return None
