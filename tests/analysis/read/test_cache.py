"""The cache of a folder of runs: which caches are used, what is read again, and what is never touched."""

import io
import os
import shutil
import stat
from pathlib import Path

import polars as pl
import pytest

from hpclbfl.analysis.read import cache
from hpclbfl.analysis.read.load import CACHE_FOLDER, load
from tests.analysis.conftest import make_old, two_client_run

ALL = ["a/rank00000.h5", "a/rank00001.h5"]


@pytest.fixture
def folder(tmp_path):
    """The cache of a folder with one run of 40 rows, loaded once."""
    root = tmp_path / "runs"
    two_client_run(root / "a")
    make_old(root)
    load(root)
    return root / CACHE_FOLDER


def piece_of(folder: Path, table: str = "steps") -> Path:
    return next(folder.glob(f"*.{table}.parquet"))


def all_steps(frames):
    return frames.steps.collect().sort("run", "step", "client")


def with_losses(piece: Path, loss: float) -> bytes:
    """A piece's file with other losses."""
    content = io.BytesIO()
    pl.read_parquet(piece).with_columns(loss=pl.lit(loss)).write_parquet(content)
    return content.getvalue()


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "other rows", "other columns", "missing", "pipe"])
def test_a_damaged_piece_is_read_anew(folder, reads, damage):
    first = all_steps(load(folder.parent))
    piece = piece_of(folder)
    content = piece.read_bytes()
    piece.unlink()
    if damage == "pipe":
        os.mkfifo(piece)
    elif damage != "missing":
        columns = io.BytesIO()
        pl.DataFrame({"log": [0]}).write_parquet(columns)
        piece.write_bytes(content)
        changed = {"cut": content[:-100], "empty": b"", "bit": flipped(content, len(content) // 2)}
        changed |= {"other rows": with_losses(piece, 0.5), "other columns": columns.getvalue()}
        piece.write_bytes(changed[damage])
    reads.clear()
    frames = load(folder.parent)
    assert all_steps(frames).equals(first)
    assert (sorted(reads), frames.notes) == (ALL, ())
    reads.clear()
    assert all_steps(load(folder.parent)).equals(first)
    assert reads == []


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "no hash", "missing", "pipe", "version"])
def test_a_damaged_index_is_made_anew(folder, reads, monkeypatch, damage):
    first = all_steps(load(folder.parent))
    index = folder / cache.INDEX
    content = index.read_bytes()
    if damage == "version":
        monkeypatch.setattr(cache, "_FORMAT", "0")
    else:
        index.unlink()
    if damage == "pipe":
        os.mkfifo(index)
    elif damage in ("cut", "empty", "bit", "no hash"):
        changed = {"cut": content[:-1], "empty": b"", "bit": flipped(content, 40), "no hash": content[32:]}
        index.write_bytes(changed[damage])
    reads.clear()
    assert all_steps(load(folder.parent)).equals(first)
    # A pipe cannot be replaced: once the cache proves unusable, the logs are read again without it.
    assert sorted(reads) == sorted(ALL * 2 if damage == "pipe" else ALL)


def test_a_cache_that_was_unpacked_from_an_archive_is_not_believed(folder, reads):
    # Valid in the folder that it was made in; the same files at the same path in another folder are not.
    honest = load(folder.parent).evals["top1"].to_list()
    packed = folder.rename(folder.with_name("packed"))
    shutil.copytree(packed, folder)
    reads.clear()
    assert load(folder.parent).evals["top1"].to_list() == honest
    assert sorted(reads) == ALL


def test_a_cache_from_elsewhere_is_not_believed(folder, reads):
    # The runs as they are in another folder, by the same names and of the same times, but with other rows.
    other = folder.parent.parent / "other"
    shutil.copytree(folder.parent, other)
    log = other / "a" / "attempts" / "000" / "rank00000.h5"
    about, content = log.stat(), log.read_bytes()
    place = content.index(b"test\0")
    log.write_bytes(content[:place] + b"tset" + content[place + 4 :])
    os.utime(log, ns=(about.st_atime_ns, about.st_mtime_ns))
    reads.clear()
    frames = load(other)
    assert sorted(reads) == ALL
    assert [(row["path"], row["rows_lost"]) for row in frames.problems.rows(named=True)] == [
        ("a/attempts/000/rank00000.h5", True)
    ]


def test_a_link_named_like_the_cache_is_left_alone(folder, capsys):
    victim = folder.parent.parent / "victim"
    names = ["mine.parquet", "draft.new", "0123456789ab.steps.parquet", ".index.1.new", piece_of(folder).name]
    victim.mkdir()
    for name in names:
        (victim / name).write_text(name)
        os.utime(victim / name, (0, 0))
    shutil.rmtree(folder)
    folder.symlink_to(victim)
    frames = load(folder.parent)
    assert len(frames.steps.collect()) == 40
    assert sorted(path.name for path in victim.iterdir()) == sorted(names)
    assert all((victim / name).read_text() == name for name in names)
    assert frames.notes == (
        f"{folder}: is a link, and what it points to is not touched; remove the link; "
        "without it all logs are read each time",
    )


def test_only_names_of_our_own_are_deleted(folder, monkeypatch):
    monkeypatch.setattr(cache, "ORPHAN_S", -1.0)
    orphan = "0123456789abcdef"
    target = folder.parent.parent / "target"
    target.write_text("precious")
    strangers = [
        "mine.parquet",
        "0123456789ab.steps.parquet",
        f"{orphan}.steps.csv",
        f".{orphan}.new",
        "index.parquet",
    ]
    unfinished = folder / f".index.{orphan[:8]}.new"
    older = f"{orphan[:12]}-{orphan[:12]}.steps.parquet"
    for name in (*strangers, older, f"{orphan}.steps.parquet", unfinished.name):
        (folder / name).write_text(name)
    (folder / f"{orphan}.evals.parquet").symlink_to(target)
    os.link(target, folder / f"{orphan}.plans.parquet")
    (folder / f"{orphan}.layers.parquet").mkdir()
    old = {path.name for path in folder.iterdir()} - {f"{orphan}.{table}.parquet" for table in cache.TABLES}
    kept = old - {cache.INDEX, unfinished.name, older}
    two_client_run(folder.parent / "b")
    frames = load(folder.parent)
    assert frames.notes == ()
    left = {path.name for path in folder.iterdir()}
    assert kept <= left
    assert left - kept >= {f"{orphan}.layers.parquet", cache.INDEX}
    gone = {f"{orphan}.{table}.parquet" for table in ("steps", "evals", "plans")} | {older, unfinished.name}
    assert not left & gone
    assert target.read_text() == "precious"


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        ("file", "cannot be used: not a directory"),
        ("pipe", "cannot be used: not a directory"),
        ("loose", "others may write into it; remove it, and it is made anew"),
        ("foreign", "belongs to another user"),
    ],
)
def test_a_cache_that_is_not_this_users_alone_is_not_used(folder, reads, monkeypatch, obstacle, reason):
    before = sorted(folder.iterdir())
    if obstacle in ("file", "pipe"):
        shutil.rmtree(folder)
    if obstacle == "file":
        folder.write_text("in the way")
    elif obstacle == "pipe":
        os.mkfifo(folder)
    elif obstacle == "loose":
        folder.chmod(0o770)
    elif os.geteuid():
        pytest.skip("only root can give a folder away")
    else:
        os.chown(folder, 65534, -1)
    reads.clear()
    frames = load(folder.parent)
    assert (len(frames.steps.collect()), sorted(reads)) == (40, ALL)
    assert frames.notes == (f"{folder}: {reason}; without it all logs are read each time",)
    if obstacle == "file":
        assert folder.read_text() == "in the way"
    elif obstacle in ("loose", "foreign"):
        assert sorted(folder.iterdir()) == before


def test_the_cache_is_this_users_alone(folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / ".gitignore").read_text() == "*\n"


def test_a_file_of_a_far_future_is_read_each_time(folder, reads):
    log = folder.parent / "a" / "attempts" / "000" / "rank00000.h5"
    try:
        os.utime(log, ns=(2**63, 2**63))
    except (OSError, OverflowError):
        pytest.skip("this file system knows no such time")
    for _ in range(2):
        reads.clear()
        assert len(load(folder.parent).steps.collect()) == 40
        assert reads == ALL[:1]


def test_many_small_pieces_become_one(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(cache, "MAX_PIECES", 2)
    monkeypatch.setattr(cache, "ORPHAN_S", -1.0)
    expected, num_pieces, num_read = {}, [], []
    for number in range(5):
        two_client_run(tmp_path / f"run{number}", num_steps=number + 1)
        expected[f"run{number}"] = 2 * (number + 1)
        make_old(tmp_path / f"run{number}")
        reads.clear()
        found = load(tmp_path).steps.group_by("run").len().collect()
        assert dict(found.rows()) == expected
        num_read.append(len(reads))
        num_pieces.append(len(list((tmp_path / CACHE_FOLDER).glob("*.steps.parquet"))))
    assert (num_read, num_pieces) == ([2, 2, 2, 8, 2], [1, 2, 3, 1, 2])


def test_pieces_bound_what_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PIECE_ROWS", 50)
    for number in range(3):
        two_client_run(tmp_path / f"run{number}")
    assert len(all_steps(load(tmp_path))) == 120
    assert len(list((tmp_path / CACHE_FOLDER).glob("*.steps.parquet"))) == 2
