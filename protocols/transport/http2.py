"""h2 set up for two nodes that know each other: the settings, and the two places where its manners do not fit."""

from __future__ import annotations

import h2.events
from attrs import field, frozen
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings
from h2.stream import StreamClosedBy
from hyperframe.frame import DataFrame, Frame, HeadersFrame

from protocols.transport.guard import MAX_DATA, MAX_HEADER_BLOCK, Budgets

_INITIAL_CONNECTION_WINDOW = 65_535  # RFC 9113 section 6.9.2


@frozen
class SessionLimits:
    """What one side grants the other on one connection."""

    streams: int = 100
    """Streams that each side may have open."""
    stream_window: int = 256 * 1024
    """Bytes a stream may hold that nobody has read: given back as the reader consumes them."""
    connection_window: int = 8 * 1024 * 1024
    """Bytes under way on the connection: given back on receipt, so that a slow reader delays no other stream."""
    last_stream: int = 2**31 - 1
    """The highest stream id that is used."""
    unsent_answers: int = 16 * 1024
    """Bytes of acknowledgements, refusals, ends and resets that may wait for a peer who does not read."""
    budgets: Budgets = field(factory=Budgets)


class Http2(H2Connection):
    """h2 with less memory of the past, and silence on streams that we have reset."""

    MAX_CLOSED_STREAMS = 1024

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self.ignored = 0
        """Flow-controlled bytes received on streams that we had reset."""

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


def http2(limits: SessionLimits, *, initiator: bool) -> Http2:
    config = H2Configuration(
        client_side=initiator,
        header_encoding=None,
        # Our own headers are lower case and few: h2 need not look at them.
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
    )
    connection = Http2(config)
    # In force from the first byte and not from the peer's acknowledgement: it has them before its first stream,
    # because they ride in the handshake.
    connection.local_settings = Settings(
        client=initiator,
        initial_values={
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window,
            SettingCodes.MAX_FRAME_SIZE: MAX_DATA,
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BLOCK,
        },
    )
    connection.max_inbound_frame_size = MAX_DATA
    connection.decoder.max_header_list_size = MAX_HEADER_BLOCK
    connection.initiate_connection()
    connection.increment_flow_control_window(limits.connection_window - _INITIAL_CONNECTION_WINDOW)
    return connection
