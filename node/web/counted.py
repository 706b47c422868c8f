"""The count of the API's answers, for metrics."""

from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Requests = Counter[tuple[str, str, int]]
"""By method, route and status."""


class Counted:
    """Counts an app's answers by method, route and status."""

    def __init__(self, app: ASGIApp, counts: Requests) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                # a path that is no route is the client's choice, and there is no end of them
                route = getattr(scope.get("route"), "path", "none")
                self._counts[scope["method"], route, message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counting)
