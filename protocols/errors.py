"""Who is wrong: us (`LocalError`), the peer (`RemoteError`), or the world outside both (`WorldError`).

The three never look alike, so that a bug of ours is never blamed on the peer, and a peer's lie never restarts a
service of ours. Every error that reaches a person or a peer has a machine-readable `code` (snake_case, stable) and a
`sentence`.
"""


class CodedError(Exception):
    """An error with a stable code for machines and a sentence for people."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence

    def __str__(self) -> str:
        return f"{self.sentence} [{self.code}]"


class LocalError(CodedError):
    """We, or the user of this node, did something that is not allowed."""


class RemoteError(CodedError):
    """The peer did something that is not allowed, refused, or is gone."""


class RemoteProtocolError(RemoteError):
    """The peer sent something malformed or dishonest; the sentence names the field, the value and what is allowed."""


class Refused(RemoteError):
    """The peer said no, within the protocol's rules; `code` and `sentence` are the peer's own."""


class Declined(RemoteError):
    """We say no to what the peer asked for, within the protocol's rules; the peer sees it as `Refused`."""


class PeerGone(RemoteError):
    """The substream to the peer ended or was reset before the dialogue was over."""

    def __init__(self, sentence: str = "the peer is gone") -> None:
        super().__init__("peer_gone", sentence)


class PeerSilent(RemoteError):
    """The peer did not answer within the time the protocol gives it."""

    def __init__(self, sentence: str) -> None:
        super().__init__("peer_silent", sentence)


class WorldError(CodedError):
    """Something outside both peers failed: the disk, the chain server, the oracle, the network."""
