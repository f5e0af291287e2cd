"""The cache of a folder of runs: whose word is taken, what is read anew, and what is never touched."""

import io
import os
import shutil
import stat
from pathlib import Path

import polars as pl
import pytest

from hpclbfl.analysis import cache, cachefolder
from hpclbfl.analysis.cachefolder import CacheFolder
from hpclbfl.analysis.load import CACHE_FOLDER, load
from hpclbfl.core.userkey import key_path
from tests.analysis.conftest import make_old, two_client_run

ALL = ["a/rank00000.h5", "a/rank00001.h5"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache of a folder with one run of 40 rows, loaded once; the user's key lies beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
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


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "other rows", "other columns", "missing", "link", "pipe"])
def test_a_damaged_piece_is_read_anew(folder, reads, damage):
    first = all_steps(load(folder.parent))
    piece = piece_of(folder)
    content = piece.read_bytes()
    piece.unlink()
    if damage == "link":
        elsewhere = folder.parent.parent / "elsewhere"
        elsewhere.write_bytes(content)
        piece.symlink_to(elsewhere)
    elif damage == "pipe":
        os.mkfifo(piece)
    elif damage != "missing":
        columns = io.BytesIO()
        pl.DataFrame({"file": pl.Series([0], dtype=pl.UInt32)}).write_parquet(columns)
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


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "parquet", "missing", "link", "pipe", "format"])
def test_a_damaged_index_is_made_anew(folder, reads, monkeypatch, damage):
    first = all_steps(load(folder.parent))
    index = folder / cachefolder.INDEX
    content = index.read_bytes()
    if damage == "format":
        monkeypatch.setattr(cache, "_FORMAT", "0")
    else:
        index.unlink()
    if damage == "link":
        (folder.parent / "elsewhere").write_bytes(content)
        index.symlink_to(folder.parent / "elsewhere")
    elif damage == "pipe":
        os.mkfifo(index)
    elif damage in ("cut", "empty", "bit", "parquet"):
        changed = {"cut": content[:-1], "empty": b"", "bit": flipped(content, 40), "parquet": content[32:]}
        index.write_bytes(changed[damage])
    reads.clear()
    assert all_steps(load(folder.parent)).equals(first)
    assert sorted(reads) == ALL
    assert not index.is_symlink()
    if damage == "link":
        assert (folder.parent / "elsewhere").read_bytes() == content


def test_a_forged_cache_is_not_believed(folder, reads):
    # With hashes, format and all as they should be, but for the key.
    honest = load(folder.parent).evals["top1"].to_list()
    forged = pl.read_parquet(piece_of(folder, "evals")).with_columns(top1=pl.lit(0.999))
    shutil.rmtree(folder)
    other = cache.Cache(CacheFolder(folder, b"x" * 32))
    from hpclbfl.analysis import load as module

    frames = module._load(folder.parent, {"a": (folder.parent / "a", _files(folder.parent))}, other, [])
    assert frames.evals["top1"].to_list() == honest
    piece = piece_of(folder, "evals")
    forged.write_parquet(piece)
    pieces = other._pieces[piece.name.partition(".")[0]]
    with other.folder._opened() as opened:
        pieces.hashes[piece.name] = other.folder._hash(piece.name, opened)
    other._write_index()
    assert cache.Cache(CacheFolder(folder, b"x" * 32)).entries.keys() == other.entries.keys()

    reads.clear()
    assert load(folder.parent).evals["top1"].to_list() == honest
    assert sorted(reads) == ALL


def _files(root: Path):
    from hpclbfl.analysis.scan import run_files

    return run_files(root / "a", root)


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
    monkeypatch.setattr(cachefolder, "ORPHAN_S", -1.0)
    ours = CacheFolder(folder, key_path().read_bytes())
    orphan, other = ours.new_piece(), CacheFolder(folder, b"x" * 32).new_piece()
    target = folder.parent.parent / "target"
    target.write_text("precious")
    strangers = [
        "mine.parquet",
        "0123456789ab.steps.parquet",
        f"{other}.steps.parquet",
        f".{other}.new",
        "index.parquet",
    ]
    for name in (*strangers, f"{orphan}.steps.parquet", f".{orphan}.new"):
        (folder / name).write_text(name)
    (folder / f"{orphan}.evals.parquet").symlink_to(target)
    os.link(target, folder / f"{orphan}.plans.parquet")
    (folder / f"{orphan}.layers.parquet").mkdir()
    kept = {path.name for path in folder.iterdir() if orphan not in path.name}
    two_client_run(folder.parent / "b")
    frames = load(folder.parent)
    assert frames.notes == ()
    left = {path.name for path in folder.iterdir()}
    assert kept <= left
    assert {name for name in left if orphan in name} == {f"{orphan}.layers.parquet"}
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
    assert stat.S_IMODE(key_path().stat().st_mode) == 0o600
    assert (folder / ".gitignore").read_text() == "*\n"


def test_a_link_in_the_place_of_the_marker_is_not_followed(folder):
    target = folder.parent.parent / "target"
    (folder / ".gitignore").unlink()
    (folder / ".gitignore").symlink_to(target)
    two_client_run(folder.parent / "b")
    load(folder.parent)
    assert not target.exists()


@pytest.mark.parametrize("damage", ["loose", "short", "link", "home"])
def test_without_a_key_of_ones_own_there_is_no_cache(folder, reads, monkeypatch, damage):
    key = key_path()
    if damage == "loose":
        key.chmod(0o644)
    elif damage == "short":
        key.write_bytes(b"x")
    elif damage == "link":
        key.rename(key.with_name("other"))
        key.symlink_to(key.with_name("other"))
    else:
        (folder.parent.parent / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent.parent / "file"))
        key = key_path()
    reads.clear()
    frames = load(folder.parent)
    assert (len(frames.steps.collect()), sorted(reads)) == (40, ALL)
    reason = {
        "link": "cannot be read: too many levels of symbolic links",
        "home": "cannot be read: not a directory",
    }.get(damage, "is not a key that only this user can read; remove it, and a new one is made")
    assert frames.notes == (f"{key}: {reason}; without it {folder} is not used, and all logs are read each time",)


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


def test_many_small_pieces_are_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MAX_SMALL_PIECES", 2)
    monkeypatch.setattr(cachefolder, "ORPHAN_S", -1.0)
    expected = {}
    for number in range(5):
        two_client_run(tmp_path / f"run{number}", num_steps=number + 1)
        expected[f"run{number}"] = 2 * (number + 1)
        make_old(tmp_path)
        found = load(tmp_path).steps.group_by("run").len().collect()
        assert dict(found.rows()) == expected
    # Once merged, the pieces that were are removed.
    assert len(list((tmp_path / CACHE_FOLDER).glob("*.steps.parquet"))) <= 3


def test_pieces_bound_what_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PIECE_ROWS", 50)
    for number in range(3):
        two_client_run(tmp_path / f"run{number}")
    assert len(all_steps(load(tmp_path))) == 120
    assert len(list((tmp_path / CACHE_FOLDER).glob("*.steps.parquet"))) == 2
