"""`cfdnode restore` and `cfdnode backup`: from words and files to a data directory, and back."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from node import cli, files
from node.backup.files import Folder
from node.backup.format import SUFFIX, Contents, Head, Kept, Record, Seal
from node.backup.keeping import needed, stream_of
from node.backup.restore import export, read_backup, restore_into
from node.eventstore.sqlite import SqliteBackend
from node.position.events import CODEC, Recovered, signatures_blob
from node.position.evolve import replay
from node.position.facts import encode_signatures
from node.wallet.seed import Seed
from protocols.contract.terms import Role
from protocols.errors import LocalError
from tests.lives import CLOSING, close, do, opened, punished, rolled, rollovers, see
from tests.positions import ORDER_ID, History, history, signatures

SEED = Seed.from_words("abandon " * 11 + "about")
SEAL = Seal(SEED.secret)
BOTH = pytest.mark.parametrize("role", Role)


def closing(role: Role) -> History:
    made = opened(role)
    do(made, close(CLOSING)[role][0])
    return made


def committed(role: Role) -> History:
    made = opened(role)
    see(made, rollovers(1).commit(role.other, 0), 205)
    return made


def cheated(role: Role) -> History:
    made = rolled(role)
    see(made, rollovers(1).commit(role.other, 0), 205)
    punished(made)
    return made


LIVES = {
    "opening": history,
    "open": opened,
    "rolling over": lambda role: rolled(role, 2),
    "rolled over": rolled,
    "half closed": closing,
    "committed": committed,
    "punishing": cheated,
}


def record(made: History) -> Record:
    events = tuple(
        Kept(new.name, new.version, new.data, 100.0 + at) for at, new in enumerate(map(CODEC.encode, made.events))
    )
    return Record(ORDER_ID, events, {signatures_blob(0): encode_signatures(signatures(made.role))})


def pieces(made: History) -> dict[bytes, bytes]:
    """What its events share with others: announcements."""
    new = map(CODEC.encode, made.events)
    return {sha256(piece).digest(): piece for each in new for piece in each.contents}


SHARED = pieces(rolled(Role.TAKER, 2)) | pieces(rolled(Role.MAKER, 2))


def put(folder: Path, *records: Record, role: str = "taker", seal: Seal = SEAL) -> Path:
    """A backup's directory."""
    place = Folder(folder)
    place.prepare()
    for each in records:
        head = Head("regtest", role, 1_700_000_000.0, {each.order_id: len(each.events)})
        place.write(seal.name(each.order_id), seal.close(Contents(head, (each,), SHARED), bytes))
    return folder


@BOTH
@pytest.mark.parametrize("life", LIVES)
def test_each_state_comes_back_as_recovered(tmp_path: Path, life: str, role: Role) -> None:
    made = LIVES[life](role)
    place, store = put(tmp_path / "backup", record(made)), tmp_path / "events.sqlite"
    restored = restore_into(store, place, SEED.secret, "regtest", "taker")
    assert (restored.positions, restored.newest, restored.damaged) == ((ORDER_ID,), 1_700_000_000.0, {})
    assert not list(tmp_path.glob("*.restoring*"))
    backend = SqliteBackend(store, lambda: 0.0)
    recorded = backend.load(stream_of(ORDER_ID), 0)
    assert backend.blob(stream_of(ORDER_ID), signatures_blob(0)) == encode_signatures(signatures(role))
    named = frozenset().union(*(CODEC.needs(each) for each in recorded))
    shared = backend.contents(named)
    backend.close()
    assert shared.keys() == named
    assert len(named) > 20, "the announcements of a contract"
    events = [CODEC.decode(each, shared) for each in recorded]
    assert events == [*made.events, Recovered("restored from a backup of 2023-11-14 22:13:20 UTC")]
    assert [each.recorded_at for each in recorded[:-1]] == [100.0 + at for at in range(len(made.events))]
    assert replay(ORDER_ID, events).recovered
    target = tmp_path / ("all" + SUFFIX)
    assert export(store, SEED.secret, "regtest", "taker", target) == 1
    again = SEAL.open(target.read_bytes())
    assert [each.name for each in again.records[0].events] == [each.name for each in recorded]
    assert again.pieces.items() <= shared.items()
    assert again.pieces.keys() == needed(again.records[0])


def test_a_file_without_its_announcements_is_named(tmp_path: Path) -> None:
    made = record(opened(Role.TAKER))
    place = Folder(tmp_path)
    head = Head("regtest", "taker", 1_700_000_000.0, {ORDER_ID: len(made.events)})
    place.write(SEAL.name(ORDER_ID), SEAL.close(Contents(head, (made,), {}), bytes))
    with pytest.raises(LocalError, match="what it shares with others is missing") as refused:
        read_backup(tmp_path, SEED.secret)
    assert refused.value.code == "backup_damaged"


def test_the_command_makes_a_data_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, data = put(tmp_path / "backup", record(opened(Role.TAKER))), tmp_path / "new"
    words = tmp_path / "words"
    words.write_text(SEED.words)
    with words.open() as typed:
        monkeypatch.setattr("sys.stdin", typed)
        assert cli.main(["restore", "--data", str(data), "--backup", str(place)]) == 0
    assert "1 positions of a taker on regtest are restored" in capsys.readouterr().out
    assert Seed.read(files.seed_file(data)).words == SEED.words
    assert (data / "network").read_text() == "regtest\n"
    assert (data / "role").read_text() == "taker\n"
    assert files.store_file(data).exists()
    # and once more is refused
    assert cli.main(["restore", "--data", str(data), "--backup", str(place)]) == cli.BAD_INPUT
    assert "there is something in it already (events.sqlite" in capsys.readouterr().err
    # what it holds is put into one file without a node
    target = tmp_path / "one"
    assert cli.main(["backup", str(target), "--data", str(data)]) == 0
    assert read_backup(target, SEED.secret).records.keys() == {ORDER_ID}
    assert cli.main(["backup", str(target), "--data", str(data)]) == cli.BAD_INPUT
    assert "there is a file already" in capsys.readouterr().err


def refusal(place: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> str:
    SEED.write(files.seed_file(data))
    assert cli.main(["restore", "--data", str(data), "--backup", str(place)]) == cli.BAD_INPUT
    assert not files.store_file(data).exists()
    return capsys.readouterr().err


def test_what_cannot_be_restored_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = record(opened(Role.TAKER))
    assert "no file of a backup" in refusal(put(tmp_path / "a"), tmp_path / "1", capsys)
    assert "nowhere" in refusal(tmp_path / "nowhere", tmp_path / "2", capsys)
    other = put(tmp_path / "b", made, seal=Seal(bytes(64)))
    assert "made with another seed" in refusal(other, tmp_path / "3", capsys)
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "role").write_text("maker\n")
    assert "it belongs to maker, the backup to taker" in refusal(put(tmp_path / "c", made), tmp_path / "4", capsys)
    second = Record(bytes(16), made.events, {})
    damaged = put(tmp_path / "d", made, second)
    file = damaged / SEAL.name(ORDER_ID)
    file.write_bytes(file.read_bytes()[:-1])
    assert file.name in refusal(damaged, tmp_path / "5", capsys)
    assert cli.main(["restore", "--data", str(tmp_path / "5"), "--backup", str(damaged), "--skip-damaged"]) == 0
    told = capsys.readouterr()
    assert f"passed over: {file.name}" in told.err
    assert "1 positions" in told.out


def test_a_store_that_is_there_is_moved_aside_and_never_lost(tmp_path: Path) -> None:
    place, store = put(tmp_path / "backup", record(opened(Role.TAKER))), tmp_path / "events.sqlite"
    store.write_bytes(b"damaged")
    with pytest.raises(LocalError, match="there is a store already"):
        restore_into(store, place, SEED.secret, "regtest", "taker")
    with pytest.raises(LocalError, match="of a taker on regtest, not of a maker"):
        restore_into(store, place, SEED.secret, "regtest", "maker")
    restore_into(
        store,
        place,
        SEED.secret,
        "regtest",
        "taker",
        aside=lambda path: path.rename(tmp_path / "events.sqlite.damaged"),
    )
    assert (tmp_path / "events.sqlite.damaged").read_bytes() == b"damaged"
    assert store.read_bytes().startswith(b"SQLite format 3")
