"""HTTP/2 as `streams` uses it: one interface, and two engines behind it that say the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import h2.events
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings

from protocols.transport.frames import Frames, PeerSettings
from protocols.transport.guard import MAX_DATA, MAX_HEADER_BLOCK
from protocols.transport.http2 import Http2, SessionLimits

_INITIAL_CONNECTION_WINDOW = 65_535  # RFC 9113 section 6.9.2


class Engine(Protocol):
    """The part of :class:`h2.connection.H2Connection` that is used, and three words more.

    What is sent is right by the caller's care: on a stream that `lives`, within its window and the frame size. What is
    received has passed the guard; whatever `receive_data` raises is about the peer's bytes.
    """

    ignored: int
    """Flow-controlled bytes received on streams that we had reset; set to 0 by the caller."""

    max_outbound_frame_size: int
    outbound_flow_control_window: int
    """Of the connection."""

    @property
    def remote_settings(self) -> PeerSettings | Settings:
        """What the peer has told us."""
        ...

    def receive_data(self, data: bytes | bytearray) -> list[h2.events.Event]: ...

    def send_headers(
        self, stream_id: int, headers: Iterable[tuple[bytes, bytes]], end_stream: bool = False
    ) -> None: ...

    def send_data(self, stream_id: int, data: bytes | memoryview) -> None: ...

    def end_stream(self, stream_id: int) -> None: ...

    def reset_stream(self, stream_id: int, error_code: ErrorCodes | int = 0) -> None: ...

    def increment_flow_control_window(self, increment: int, stream_id: int | None = None) -> None: ...

    def local_flow_control_window(self, stream_id: int) -> int: ...

    def ping(self, opaque_data: bytes) -> None: ...

    def update_settings(self, new_settings: dict[SettingCodes | int, int]) -> None: ...

    def close_connection(self, error_code: ErrorCodes | int = 0, additional_data: bytes | None = None) -> None: ...

    def lives(self, stream_id: int) -> bool:
        """Whether the stream is open in one direction at least."""
        ...

    @property
    def unsent(self) -> int:
        """Bytes that `data_to_send` would give."""
        ...

    def data_to_send(self) -> bytes: ...


def engine(limits: SessionLimits, *, initiator: bool) -> Engine:
    """One side's engine, with its preface and settings already said."""
    settings = Settings(
        client=initiator,
        initial_values={
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window,
            SettingCodes.MAX_FRAME_SIZE: MAX_DATA,
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BLOCK,
        },
    )
    made: Engine = (Http2 if limits.reference else Frames)(settings, initiator=initiator)
    made.increment_flow_control_window(limits.connection_window - _INITIAL_CONNECTION_WINDOW)
    return made
