"""HTTP/2 by h2, the reference: set up for two nodes that know each other, with two manners of its own changed."""

from __future__ import annotations

import h2.events
from attrs import field, frozen
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import ChangedSetting, SettingCodes, Settings
from h2.stream import StreamClosedBy
from hyperframe.frame import DataFrame, Frame, HeadersFrame

from protocols.transport.guard import MAX_DATA, MAX_HEADER_BLOCK, Budgets

QUICK = 4
"""Stream windows that a stream whose reader keeps up may have."""


@frozen
class SessionLimits:
    """What one side grants the other on one connection."""

    streams: int = 100
    """Streams that each side may have open."""
    stream_window: int = 256 * 1024
    """Bytes a stream may hold that nobody has read: given back as the reader consumes them."""
    quick_windows: int = 4 * 1024 * 1024
    """Bytes that the streams of one connection may hold beyond that, together: lent to those whose readers keep up, up
    to `QUICK` windows each, so that their senders need not wait for each half to be given back."""
    connection_window: int = 8 * 1024 * 1024
    """Bytes under way on the connection: given back on receipt, so that a slow reader delays no other stream."""
    last_stream: int = 2**31 - 1
    """The highest stream id that is used."""
    unsent_answers: int = 16 * 1024
    """Bytes of acknowledgements, refusals, ends and resets that may wait for a peer who does not read."""
    budgets: Budgets = field(factory=Budgets)
    reference: bool = False
    """Whether to speak HTTP/2 by h2 and not by our own framing, which says the same."""


class Http2(H2Connection):
    """h2 with less memory of the past, and silence on streams that we have reset."""

    MAX_CLOSED_STREAMS = 1024

    def __init__(self, settings: Settings, *, initiator: bool) -> None:
        """`settings`: ours."""
        config = H2Configuration(
            client_side=initiator,
            header_encoding=None,
            # Our own headers are lower case and few: h2 need not look at them.
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        super().__init__(config)
        self.ignored = 0
        self._first_acknowledged = False
        # In force from the first byte and not from the peer's acknowledgement: it has them before its first stream,
        # because they ride in the handshake.
        self.local_settings = settings
        self.max_inbound_frame_size = MAX_DATA
        self.decoder.max_header_list_size = MAX_HEADER_BLOCK
        self.initiate_connection()

    def _local_settings_acked(self) -> dict[SettingCodes | int, ChangedSetting]:
        if not self._first_acknowledged:
            # These were in force before: it must not count for a change that is under way.
            self._first_acknowledged = True
            return {}
        return super()._local_settings_acked()

    def lives(self, stream_id: int) -> bool:
        stream = self.streams.get(stream_id)
        return stream is not None and not stream.closed

    @property
    def unsent(self) -> int:
        return len(self._data_to_send)

    def _receive_frame(self, frame: Frame) -> list[h2.events.Event]:
        if self._stream_closed_by(frame.stream_id) is StreamClosedBy.SEND_RST_STREAM:
            return self._ignore(frame)
        if frame.__class__ is DataFrame:
            # What h2 does, less the repr of each frame that it makes for a logger that is off: a third of the
            # time of bulk transfer.
            frames, events = self._receive_data_frame(frame)
            self._prepare_for_sending(frames)
            return events
        return super()._receive_frame(frame)

    def _ignore(self, frame: Frame) -> list[h2.events.Event]:
        """RFC 9113 section 5.1: what was under way when our RST_STREAM left is no error and needs no answer.

        h2 would answer each frame with one more RST_STREAM, which looks like a flood to the peer. It only has to be
        counted: DATA against the connection's window, header blocks into the compression state.
        """
        if isinstance(frame, DataFrame):
            self._inbound_flow_control_window_manager.window_consumed(frame.flow_controlled_length)
            self.ignored += frame.flow_controlled_length
        elif isinstance(frame, HeadersFrame):
            self.decoder.decode(frame.data, raw=True)
        return []
