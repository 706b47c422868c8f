"""The node's own errors on top of `protocols.errors`."""

from collections.abc import Sequence

from protocols.errors import LocalError, WorldError


class Disconnected(WorldError):
    """A service of this node is not up, or went down during the call.

    From a call that writes it means *outcome unknown*: reload and compare before trying again.
    """

    def __init__(self, service: str, reason: str) -> None:
        super().__init__("disconnected", f"{service} is not available: {reason}")
        self.service = service
        self.reason = reason


class NeedsUser(LocalError):
    """A service cannot go on by itself, and trying again would not help: only the user can.

    The service is *blocked* with this sentence and remedy until the user restarts it.
    """

    def __init__(self, reason: str, remedy: str, *, code: str = "needs_user", repairs: Sequence[str] = ()) -> None:
        """`repairs` name those of the service that are offered while it is blocked."""
        super().__init__(code, reason)
        self.remedy = remedy
        self.repairs = tuple(repairs)


class Stuck(WorldError):
    """A service made no progress for so many seconds; whatever it waits for is not coming."""

    def __init__(self, seconds: float, *, starting: bool) -> None:
        what = "its start made" if starting else "it made"
        super().__init__("stuck", f"{what} no progress for {seconds:g} s")
        self.seconds = seconds


class ConfigError(LocalError):
    """The configuration (flag, environment, file) says something that is not allowed; nothing was touched yet."""

    def __init__(self, sentence: str) -> None:
        super().__init__("bad_config", sentence)


class NotFound(LocalError):
    """What the user names does not exist here."""


class Conflict(LocalError):
    """What the user asks for does not go with the present state."""


class FieldError(LocalError):
    """A value that the user gave is not allowed; `field` names it."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__("bad_value", sentence)
        self.field = field
