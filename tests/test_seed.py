"""Seed words: BIP39 as others compute it, errors that never show a word, a file for its owner alone."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.wallet.address import to_address, to_script
from node.wallet.bip86 import CHANGE, HARDENED, RECEIVE, Account, ExtendedKey
from node.wallet.seed import Seed
from protocols.errors import LocalError

ABOUT = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"


def test_the_64_bytes_of_bip39() -> None:
    # https://github.com/trezor/python-mnemonic/blob/master/vectors.json, without its passphrase
    assert Seed.from_words(ABOUT).secret.hex() == (
        "5eb00bbddcf069084889a8ab9155568165f5c453ccb85e70811aaed6f6da5fc1"
        "9a5ac40b389cd370d086206dec8aa6c43daea6690f20ad3d8d48b2d2ce9e38e4"
    )


def test_generated_words_follow_from_the_entropy_alone() -> None:
    assert Seed.generate(bytes).words == ABOUT
    assert Seed.generate() != Seed.generate()


@given(st.binary(min_size=16, max_size=16), st.sampled_from([" ", "\n", "\t  "]), st.booleans())
def test_words_are_read_as_people_type_them(entropy: bytes, gap: str, shout: bool) -> None:
    seed = Seed.generate(lambda _: entropy)
    typed = gap + gap.join(seed.words.split()) + gap
    assert Seed.from_words(typed.upper() if shout else typed) == seed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "0 words were given"),
        (ABOUT + " about", "13 words were given; 12, 15, 18, 21 or 24 are allowed"),
        (ABOUT.replace("about", "aboot"), "word 12 is not in the English list"),
        ("zzz " + ABOUT.partition(" ")[2], "word 1 is not in the English list"),
        (ABOUT.replace("about", "abandon"), "the checksum does not match"),
        (ABOUT.replace("about", "ábout"), "word 12 is not in the English list"),
        (ABOUT.replace("about", "\udcff\udcfe"), "word 12 is not in the English list"),  # bytes that are no text
    ],
)
def test_a_bad_phrase_is_refused_by_position_without_its_words(text: str, says: str) -> None:
    with pytest.raises(LocalError) as caught:
        Seed.from_words(text)
    assert caught.value.code == "bad_seed_words"
    assert says in caught.value.sentence
    assert caught.value.__cause__ is None
    assert not any(word in str(caught.value).split() for word in text.split())


def test_secrets_are_not_shown() -> None:
    seed = Seed.generate()
    assert repr(seed) == str(seed) == "Seed()"
    assert repr(ExtendedKey.master(seed.secret)) == "ExtendedKey()"


def test_the_identity_is_a_tagged_hash_of_the_seed() -> None:
    seed = Seed.from_words(ABOUT)
    tag = hashlib.sha256(b"cfd/identity").digest()
    assert seed.node_identity() == hashlib.sha256(tag + tag + seed.secret).digest()


def test_the_file_is_its_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "data" / "seed"
    seed = Seed.generate()
    seed.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.read_text() == seed.words + "\n"
    assert Seed.read(path) == seed
    with pytest.raises(LocalError, match="seed_exists"):
        Seed.generate().write(path)
    assert Seed.read(path) == seed
    assert [entry.name for entry in path.parent.iterdir()] == ["seed"]


def test_a_file_that_cannot_be_the_seed_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "seed"
    with pytest.raises(LocalError, match="no_seed") as caught:
        Seed.read(path)
    assert str(path) in caught.value.sentence
    path.touch(mode=0o600)
    path.write_bytes(b"\xff\x00 not words")
    with pytest.raises(LocalError, match="bad_seed_words") as caught:
        Seed.read(path)
    assert str(path) in caught.value.sentence
    path.write_text(ABOUT)
    path.chmod(0o640)
    with pytest.raises(LocalError, match="seed_exposed"):
        Seed.read(path)
    with pytest.raises(LocalError, match="seed_unreadable"):
        Seed.read(tmp_path)
    with pytest.raises(LocalError, match="seed_unwritable"):
        Seed.generate().write(path / "below a file" / "seed")


def test_bip32_derivation() -> None:
    # BIP32, test vector 1: m and m/0'/1/2'/2/1000000000
    key = ExtendedKey.master(bytes.fromhex("000102030405060708090a0b0c0d0e0f"))
    assert key.secret.hex() == "e8f32e723decf4051aefac8e2c93c9c5b214313817cdb01a1494b917c8436b35"
    leaf = key.path(0 | HARDENED, 1, 2 | HARDENED, 2, 1000000000)
    assert leaf.secret.hex() == "471b76e389e528d6de6d816857e012c5455051cad6660850e58372a6c3e6e7c8"
    assert leaf.chain_code.hex() == "c783e67b921d2beb8f6b389cc646d7263b4145701dadd2161548a8b078e65e9e"


def test_bip86_addresses() -> None:
    # BIP86, "Test vectors"
    account = Account(Seed.from_words(ABOUT).secret, "mainnet")
    for chain, index, address in [
        (RECEIVE, 0, "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr"),
        (RECEIVE, 1, "bc1p4qhjn9zdvkux4e44uhx8tc55attvtyu358kutcqkudyccelu0was9fqzwh"),
        (CHANGE, 0, "bc1p3qkhfews2uk44qtvauqyr2ttdsw7svhkl9nkm9s9c3x4ax5h60wqwruhk7"),
    ]:
        script = account.script(chain, index)
        assert to_address(script, "mainnet") == address
        assert to_script(address, "mainnet") == script


@pytest.mark.parametrize("address", ["", "x" * 500, "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr"])
def test_a_bad_address_is_refused(address: str) -> None:
    with pytest.raises(LocalError, match="bad_address") as caught:
        to_script(address, "regtest")
    assert "regtest" in caught.value.sentence
    assert len(caught.value.sentence) < 200


def test_a_script_without_an_address_is_refused() -> None:
    with pytest.raises(LocalError, match="no_address"):
        to_address(b"\x6a", "regtest")
