"""The handshake against a second implementation, from the Noise specification (revision 34), and its refusals."""

import gc
import hashlib
import hmac
import weakref

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import LocalError, RemoteProtocolError
from protocols.transport.events import Established
from protocols.transport.handshake import MAX_PAYLOAD, Handshake, public_key
from protocols.transport.records import MAX_CIPHERTEXT, MAX_PLAINTEXT, Cutter, framed, pieces
from protocols.transport.session import Session
from tests.sessions import DIALLER, LISTENER, fresh

E_DIALLER, E_LISTENER = bytes([7]) * 32, bytes([9]) * 32
LOW_ORDER = bytes(32)


class Symmetric:
    """Noise sections 5.1 and 5.2 with SHA256 and ChaChaPoly, nothing else."""

    def __init__(self, name: bytes, prologue: bytes) -> None:
        assert len(name) == 32
        self.ck = self.h = name
        self.key, self.n = b"", 0
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.h = hashlib.sha256(self.h + data).digest()

    def hkdf(self, material: bytes) -> tuple[bytes, bytes]:
        temporary = hmac.digest(self.ck, material, "sha256")
        first = hmac.digest(temporary, b"\x01", "sha256")
        return first, hmac.digest(temporary, first + b"\x02", "sha256")

    def mix_key(self, secret: bytes, public: bytes) -> None:
        shared = X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
        self.ck, self.key = self.hkdf(shared)
        self.n = 0

    def seal(self, plaintext: bytes) -> bytes:
        nonce = bytes(4) + self.n.to_bytes(8, "little")
        ciphertext = ChaCha20Poly1305(self.key).encrypt(nonce, plaintext, self.h)
        self.n += 1
        self.mix_hash(ciphertext)
        return ciphertext

    def opened(self, ciphertext: bytes) -> bytes:
        nonce = bytes(4) + self.n.to_bytes(8, "little")
        plaintext = ChaCha20Poly1305(self.key).decrypt(nonce, ciphertext, self.h)
        self.n += 1
        self.mix_hash(ciphertext)
        return plaintext


def handshakes() -> tuple[Handshake, Handshake]:
    dialler = Handshake(secret=DIALLER, ephemeral=E_DIALLER, peer=public_key(LISTENER))
    return dialler, Handshake(secret=LISTENER, ephemeral=E_LISTENER, peer=None)


def test_an_independent_initiator_makes_the_same_bytes_and_keys() -> None:
    dialler, listener = handshakes()
    noise = Symmetric(b"Noise_XK_25519_ChaChaPoly_SHA256", b"cfd/1")
    noise.mix_hash(public_key(LISTENER))

    noise.mix_hash(public_key(E_DIALLER))
    noise.mix_key(E_DIALLER, public_key(LISTENER))
    first = public_key(E_DIALLER) + noise.seal(b"")
    assert dialler.write() == first
    assert listener.read(first) == b""

    second = listener.write(b"settings of the listener")
    noise.mix_hash(second[:32])
    noise.mix_key(E_DIALLER, second[:32])
    assert noise.opened(second[32:]) == b"settings of the listener"
    assert dialler.read(second) == b"settings of the listener"

    third = noise.seal(public_key(DIALLER))
    noise.mix_key(DIALLER, second[:32])
    third += noise.seal(b"preface")
    assert dialler.write(b"preface") == third
    assert listener.read(third) == b"preface"
    assert listener.peer == public_key(DIALLER)
    assert dialler.peer == public_key(LISTENER)

    to_listener, to_dialler = noise.hkdf(b"")
    (to_them, _), (back, forth) = dialler.ciphers(), listener.ciphers()
    assert to_them.encrypt(b"x") == ChaCha20Poly1305(to_listener).encrypt(bytes(12), b"x", b"")
    assert back.encrypt(b"y") == ChaCha20Poly1305(to_dialler).encrypt(bytes(12), b"y", b"")
    assert forth.decrypt(ChaCha20Poly1305(to_listener).encrypt(bytes(12), b"x", b"")) == b"x"


def test_who_does_not_know_the_key_gets_nothing_out_of_the_port() -> None:
    stranger = Session(secret=DIALLER, ephemeral=E_DIALLER, peer=public_key(bytes([5]) * 32))
    listener = Session(secret=LISTENER, ephemeral=E_LISTENER)
    with pytest.raises(RemoteProtocolError, match="not for us"):
        listener.receive(stranger.data_to_send(), 0)
    assert listener.data_to_send() == b""
    with pytest.raises(LocalError, match="over"):
        listener.receive(b"more", 0)


@given(st.binary(min_size=1, max_size=300))
def test_garbage_instead_of_a_handshake_is_refused_or_waited_for(garbage: bytes) -> None:
    listener = Session(secret=LISTENER, ephemeral=E_LISTENER)
    refused = False
    try:
        assert listener.receive(garbage, 0) == []
    except RemoteProtocolError:
        refused = True
    # A complete first message, or a length that is not its length, is judged at once.
    assert refused == (len(garbage) >= 2 and (garbage[:2] != b"\0\x30" or len(garbage) >= 50))
    assert listener.data_to_send() == b""


@pytest.mark.parametrize("message", [0, 1, 2])
@pytest.mark.parametrize("position", [0, 31, 40, -1])
def test_a_changed_bit_in_any_message_ends_the_handshake(message: int, position: int) -> None:
    dialler, listener = handshakes()
    writers = [dialler, listener, dialler]
    readers = [listener, dialler, listener]
    for number, (writer, reader) in enumerate(zip(writers, readers, strict=True)):
        sent = writer.write(b"" if number == 0 else b"payload")
        if number < message:
            reader.read(sent)
            continue
        changed = bytearray(sent)
        changed[position] ^= 1
        with pytest.raises(RemoteProtocolError, match="not for us"):
            reader.read(bytes(changed))
        assert not reader.finished
        return


def test_low_order_keys_are_refused_by_name() -> None:
    _, listener = handshakes()
    with pytest.raises(RemoteProtocolError, match="low order"):
        listener.read(LOW_ORDER + bytes(16))
    with pytest.raises(RemoteProtocolError, match="low order"):
        Handshake(secret=DIALLER, ephemeral=E_DIALLER, peer=LOW_ORDER).write()


def test_sizes_are_bounded_and_the_peer_is_known_only_at_the_end() -> None:
    dialler, listener = handshakes()
    assert listener.size_allowed() == (48, 48)
    with pytest.raises(RemoteProtocolError, match="47 bytes, allowed are 48 to 48"):
        listener.read(bytes(47))
    with pytest.raises(LocalError, match="at most 0"):
        dialler.write(b"x")
    listener.read(dialler.write())
    with pytest.raises(LocalError, match="at most 256"):
        listener.write(bytes(MAX_PAYLOAD + 1))
    dialler.read(listener.write(bytes(MAX_PAYLOAD)))
    with pytest.raises(LocalError, match="handshake is finished"):
        _ = listener.peer
    with pytest.raises(LocalError, match="must have 32"):
        Handshake(secret=b"short", ephemeral=E_DIALLER, peer=None)


def test_the_settings_ride_in_the_handshake() -> None:
    pair = fresh()
    pair.settle()
    (at_a, *_), (at_b, *_) = pair.take("a"), pair.take("b")
    assert at_a == Established(public_key(LISTENER))
    assert at_b == Established(public_key(DIALLER))
    for side in (pair.a, pair.b):
        stream = side.streams.open_stream("/cfd/ping/1")
        assert side.streams.streams_allowed == 100
        # Not the 65,535 of HTTP/2's defaults …
        assert side.streams.room(stream) == 256 * 1024
        # … and not its frames of 16,384: the first may be as large as all others.
        side.streams.send_data(stream, bytes(65_510))
        assert int.from_bytes(side.streams.take()[-65_510 - 9 : -65_510 - 6], "big") == 65_510


def test_a_handshake_without_settings_is_refused() -> None:
    dialler, _ = handshakes()
    listener = Session(secret=LISTENER, ephemeral=E_LISTENER)
    listener.receive(framed(dialler.write()), 0)
    dialler.read(listener.data_to_send()[2:])
    with pytest.raises(RemoteProtocolError, match="no HTTP/2 settings"):
        listener.receive(framed(dialler.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")), 0)
    farewell = dialler.ciphers()[1].decrypt(bytes(listener.data_to_send())[2:])
    assert farewell.endswith(b"bad_handshake")


def test_secrets_of_the_handshake_do_not_outlive_it() -> None:
    """Not even until the collector of reference cycles comes by."""
    pair = fresh()
    states = [weakref.ref(side._handshake._noise.noise_protocol) for side in (pair.a, pair.b)]
    gc.disable()
    try:
        pair.settle()
        assert [state() for state in states] == [None, None]
    finally:
        gc.enable()


def test_secrets_are_not_shown() -> None:
    pair = fresh()
    for thing in (pair.a, pair.b, handshakes()[0]):
        assert DIALLER.hex() not in repr(thing)
        assert repr(DIALLER) not in repr(thing)


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), max_size=200))
def test_messages_are_cut_the_same_however_they_arrive(messages: list[bytes], cuts: list[int]) -> None:
    data = b"".join(framed(message) for message in messages)
    cutter, got = Cutter(), []
    while data:
        size = cuts.pop() if cuts else len(data)
        cutter.feed(data[:size])
        data = data[size:]
        while (message := cutter.next(0, 40)) is not None:
            got.append(bytes(message))
            del message
    assert got == messages


def test_a_length_out_of_bounds_is_refused_before_its_bytes_arrive() -> None:
    cutter = Cutter()
    cutter.feed(b"\0\x10")
    with pytest.raises(RemoteProtocolError, match="record length 16, allowed here are 17 to 65535"):
        cutter.next(17, MAX_CIPHERTEXT)


@pytest.mark.parametrize("size", [1, MAX_PLAINTEXT, MAX_PLAINTEXT + 1, 3 * MAX_PLAINTEXT])
def test_plaintext_is_cut_to_records_that_the_peer_accepts(size: int) -> None:
    parts = list(pieces(bytes(size)))
    assert sum(map(len, parts)) == size
    assert max(map(len, parts)) <= MAX_PLAINTEXT == 65_519
