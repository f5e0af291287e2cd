"""Runs whose files hold what no run writes: a line about that run, and all others as they are."""

import json
import os
import re

import polars as pl
import pytest

from hpclbfl.analysis.measure.report import make_report, problem_lines, summarise
from hpclbfl.analysis.read import records
from hpclbfl.analysis.read.load import load
from hpclbfl.analysis.show.export import TABLES, export
from hpclbfl.analysis.show.markup import TextTable, to_latex, to_markdown
from hpclbfl.analysis.show.page import page
from hpclbfl.analysis.show.render import write_figures
from hpclbfl.analysis.show.watch import Watcher, watch
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import Section
from hpclbfl.core.errors import DataError, EnvironmentFault
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.log.writer import RunLog
from tests.analysis.conftest import print_folder, two_client_run

CONFIG, STATUS, DONE, PROVENANCE = "config.yaml", "status.json", "DONE.json", "attempts/000/provenance.json"
CASES = [
    (CONFIG, b"a: [", "line 2: not valid YAML: ", "unreadable"),
    (CONFIG, b"!!bool foo", "", "unreadable"),
    (CONFIG, b"- 1\n", "a job is a mapping of keys to values", "unreadable"),
    (CONFIG, b"\xff\xfe\xfa", "line 1: cannot be read: not a text file (UTF-8)", "unreadable"),
    (CONFIG, b"#" * (1 << 20) + b"\na: 1\n", "is larger than 1,048,576 bytes", "unreadable"),
    (CONFIG, b"seed: a\n", "seed: is 'a', must be a whole number from 0 up", "unreadable"),
    (CONFIG, b"seed: 1.5\n", "seed: is 1.5, must be a whole number from 0 up", "unreadable"),
    (CONFIG, b"seed: true\n", "seed: is True, must be a whole number from 0 up", "unreadable"),
    (CONFIG, b"seed: 9223372036854775808\n", "seed: is '9223372036854775808', must be", "unreadable"),
    (CONFIG, b"clients: 0\n", "clients: is 0, must be a whole number from 1 up", "unreadable"),
    (CONFIG, b"clients: [2]\n", "clients: is '[2]', must be a whole number from 1 up", "unreadable"),
    (CONFIG, b"gradients: {scaler: {threshold: x}}\n", "gradients.scaler.threshold: is 'x', must be", "unreadable"),
    (CONFIG, b"sync: [bsp]\n", "sync: is ['bsp'], a section is a mapping of keys to values", "unreadable"),
    (CONFIG, b"partition: " + b"x" * 100_000, "partition: is 'xxx", "unreadable"),
    (CONFIG, b"a.b: 1\n", "'a.b' is not a key of a job", "unreadable"),
    (CONFIG, b"'*': 1\n", "'*' is not a key of a job", "unreadable"),
    (CONFIG, b'"\\e[31m": 1\n', r"'\x1b[31m' is not a key of a job", "unreadable"),
    (CONFIG, json.dumps({f"k{n}": n for n in range(5000)}).encode(), "has more than 1,000 keys", "unreadable"),
    (CONFIG, b"pipe", "is not a regular file", "unreadable"),
    (CONFIG, b"loop", "cannot be read: Too many levels of symbolic links", "unreadable"),
    (CONFIG, b"dangling", "is not there any more", "unreadable"),
    (STATUS, b'{"state": ', "is damaged: not JSON: ", "done"),
    (STATUS, b'{"a":' * 300 + b"1" + b"}" * 300, "is damaged: not JSON: ", "done"),
    (STATUS, b'{"state": "\\ud800"}', "is damaged: not JSON: ", "done"),
    (STATUS, b'{"state": 1}', "is damaged: state: input should be a valid string", "done"),
    (STATUS, b"[]", "is damaged: holds no JSON object", "done"),
    (STATUS, b"folder", "is not a regular file", "done"),
    (STATUS, b"pipe", "is not a regular file", "done"),
    (DONE, b'{"top1": "x"}', "is damaged: top1: input should be a valid number", "done"),
    (DONE, b'{"top1": 2}', "is damaged: top1: input should be less than or equal to 1", "done"),
    (DONE, b'{"step": -1}', "is damaged: step: input should be greater than or equal to 0", "done"),
    (DONE, b'{"step": "3"}', "is damaged: step: input should be a valid integer", "done"),
    (DONE, b'{"elapsed_s": "NaN"}', "is damaged: elapsed_s: input should be a valid number", "done"),
    (DONE, b'{"elapsed_s": NaN}', "is damaged: not JSON: ", "done"),
    (DONE, b'{"elapsed_s": 1, "checksum": "0"}', "is damaged: its content does not match its checksum", "done"),
    (PROVENANCE, b'{"num_ranks": 1000000000000000000000000000000}', "is damaged: num_ranks: ", "done"),
    (
        PROVENANCE,
        b'{"num_ranks": 1099511627776}',
        "is damaged: num_ranks: input should be less than 2147483648",
        "done",
    ),
    (PROVENANCE, b'{"versions": "x"}', "is damaged: versions: ", "done"),
    (PROVENANCE, b'{"gpus": {"a": 1}}', "is damaged: gpus: input should be a valid array", "done"),
    (PROVENANCE, b'{"host": "\\ud800"}', "is damaged: not JSON: ", "done"),
    (PROVENANCE, b'{"git": {"dirty": "yes"}}', "is damaged: git.dirty: input should be a valid boolean", "done"),
]


@pytest.fixture
def root(tmp_path):
    two_client_run(tmp_path / "bad")
    two_client_run(tmp_path / "good", seed=1)
    return tmp_path


def put(path, content):
    path.unlink()
    if content == b"pipe":
        os.mkfifo(path)
    elif content == b"folder":
        path.mkdir()
    elif content in (b"loop", b"dangling"):
        path.symlink_to(path.name if content == b"loop" else "nowhere")
    else:
        path.write_bytes(content)


def assert_good(frames):
    runs = summarise(frames).filter(pl.col("run") == "good")
    assert runs.select("state", "complete", "top1", "seed").rows() == [("done", True, 0.71234, 1)]
    assert len(frames.steps.filter(pl.col("run") == "good").collect()) == 40
    assert "good" not in problem_lines(frames)


@pytest.mark.parametrize(("file", "content", "reason", "state"), CASES, ids=lambda value: str(value)[:40])
def test_a_bad_run_costs_the_others_nothing(root, capsys, file, content, reason, state):
    put(root / "bad" / file, content)
    for _ in range(2):
        # The second time out of the cache.
        frames = load(root)
        problems = frames.problems.filter(pl.col("run") == "bad")
        assert problems["path"].to_list() == [f"bad/{file}"]
        assert problems["reason"][0].startswith(reason)
        assert len(problems["reason"][0]) < 400
        assert problems["reason"][0].isprintable()
        assert problems["rows_lost"].to_list() == [file in (CONFIG, DONE)]
        assert frames.runs.filter(pl.col("run") == "bad")["state"].to_list() == [state]
        assert_good(frames)
    print_folder(root)
    assert f"{root / 'bad' / file}: {reason}" in capsys.readouterr().out
    print_folder(root, as_json=True)
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["good"]["top1"], rows["good"]["problems"]) == (0.71234, [])
    assert [line.startswith(f"{root / 'bad' / file}: {reason}") for line in rows["bad"]["problems"]] == [True]
    watch(root, once=True)
    assert "good" in capsys.readouterr().out


@pytest.mark.slow
def test_export_and_page_go_on_with_every_bad_run(tmp_path):
    two_client_run(tmp_path / "good", seed=1)
    for number, (file, content, _, _) in enumerate(CASES):
        two_client_run(tmp_path / f"bad{number:02d}", num_steps=1)
        put(tmp_path / f"bad{number:02d}" / file, content)
    frames = load(tmp_path)
    assert_good(frames)
    assert len(frames.problems) == len(CASES)
    written = {path.name: rows for path, rows in export(frames, tmp_path / "tables", "csv")}
    assert (written["runs.csv"], written["problems.csv"]) == (len(CASES) + 1, len(CASES))
    assert "What went wrong" in page(make_report(frames))
    assert len(Watcher(tmp_path).look()) == len(CASES) + 1


@pytest.mark.parametrize(
    ("file", "content", "state", "text"),
    [
        (STATUS, b"{", "unreadable", "status.json: is damaged: not JSON"),
        (DONE, b'{"top1": "x"}', "unreadable", "DONE.json: is damaged: top1: input should be a valid number"),
        (CONFIG, b"!!bool foo", "done", ""),
        (STATUS, b"pipe", "unreadable", "status.json: is not a regular file"),
    ],
)
def test_watch_names_what_cannot_be_read(root, file, content, state, text):
    put(root / "bad" / file, content)
    runs = {run.run: run for run in Watcher(root).look()}
    assert (runs["bad"].state, text in runs["bad"].text) == (state, True)
    assert (runs["good"].state, runs["good"].progress.steps) == ("done", 20)


@pytest.mark.parametrize(
    ("name", "value"), [("rank", 2**40), ("rank", -1), ("resumed_from_step", -1), ("resumed_from_step", 2**62)]
)
def test_a_log_of_an_impossible_rank(root, name, value):
    log = root / "bad" / "attempts" / "000" / "rank00000.h5"
    log.unlink()
    with RunLog(log, {"rank": 0, "attempt": 0, "resumed_from_step": 0, name: value}):
        pass
    frames = load(root)
    assert frames.problems.select("path", "reason").rows() == [
        (
            "bad/attempts/000/rank00000.h5",
            f"attribute '{name}' is {value}; expected a whole number from 0 to 2147483647",
        )
    ]
    assert_good(frames)


def test_a_pipe_in_the_place_of_a_log(root):
    put(root / "bad" / "attempts" / "000" / "rank00000.h5", b"pipe")
    frames = load(root)
    expected = [("bad/attempts/000/rank00000.h5", "is not a regular file")]
    assert frames.problems.select("path", "reason").rows() == expected
    assert_good(frames)
    assert [(run.run, run.progress.steps) for run in Watcher(root).look()] == [("bad", 0), ("good", 20)]


def test_names_that_are_no_text(root):
    two_client_run(root / os.fsdecode(b"b\xffd\n"))
    two_client_run(root / r"b\udcffd\n")
    frames = load(root)
    assert sorted(frames.runs["run"]) == [r"b\udcffd\n", r"b\udcffd\n #2", "bad", "good"]
    assert set(frames.runs["state"]) == {"done"}
    assert_good(frames)
    # And again, out of the cache.
    assert load(root).runs.equals(frames.runs)
    assert len(Watcher(root).look()) == 4
    assert page(make_report(frames)).encode()
    assert {path.name: rows for path, rows in export(frames, root / "tables", "parquet")}["runs.parquet"] == 4


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"{", "is damaged: not JSON"),
        (b"[]", "is damaged: holds no JSON object"),
        (b'{"runs": {"id": "a"}}', "is damaged: runs: input should be a valid array"),
        (b'{"runs": [{"id": 1}]}', "is damaged: runs.0.id: input should be a valid string"),
        (b"pipe", "is not a regular file"),
    ],
)
def test_a_sweeps_list_that_cannot_be_read(root, capsys, content, line):
    (root / "sweep.json").write_text("")
    put(root / "sweep.json", content)
    print_folder(root)
    assert f"{root / 'sweep.json'}: {line}" in capsys.readouterr().out
    watch(root, once=True)
    shown = capsys.readouterr().out
    assert line in " ".join(shown.split())
    assert "2 done" in shown


def test_a_sweep_that_lists_odd_names(root, capsys):
    ids = ["../../etc", "x" * 5000, "a\n", "ü"]
    (root / "sweep.json").write_text(json.dumps({"runs": [{"id": id_} for id_ in ids]}))
    print_folder(root)
    assert "4 runs of the sweep: not started" in capsys.readouterr().out


def test_a_run_that_vanishes_meanwhile(root, monkeypatch):
    from hpclbfl.analysis.read import load as module

    original = module.read_plain

    def read(path, kind):
        if path.parent.name == "bad" and kind == "config":
            path.unlink()
        return original(path, kind)

    monkeypatch.setattr(module, "read_plain", read)
    frames = load(root)
    assert frames.problems.select("path", "reason", "rows_lost").rows() == [
        ("bad/config.yaml", "is not there any more", True)
    ]
    assert_good(frames)


def test_folders_that_cannot_be_listed(root, monkeypatch, capsys):
    (root / "deep" / "down").mkdir(parents=True)
    closed = {str(root / "deep"), str(root / "bad" / "attempts")}
    original = os.scandir

    def scandir(path):
        if os.fspath(path) in closed:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return original(path)

    # The superuser, whom tests may run as, may list all.
    monkeypatch.setattr(os, "scandir", scandir)
    frames = load(root)
    assert frames.notes == (f"{root / 'deep'}: cannot be listed: permission denied; left out",)
    assert ("bad/attempts", "cannot be listed") in frames.problems.select("path", "reason").rows()
    assert frames.runs.filter(pl.col("run") == "bad")["complete"].to_list() == [False]
    assert_good(frames)
    print_folder(root)
    assert capsys.readouterr().err == f"hpclbfl: {frames.notes[0]}\n"


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000])
def test_a_folder_that_cannot_be(tmp_path, name):
    with pytest.raises(DataError, match="cannot be read: file name too long"):
        load(tmp_path / name)


def test_a_seed_that_no_job_states(tmp_path):
    for name in ("a", "b"):
        two_client_run(tmp_path / name)
        (tmp_path / name / "config.yaml").write_text(f"name: {name}\nclients: null\nseed: null\n")
    frames = load(tmp_path)
    assert frames.runs["seed"].to_list() == [0, 0]
    assert "<html" in page(make_report(frames))


def test_keys_that_are_columns_of_their_own(tmp_path):
    two_client_run(tmp_path / "a")
    (tmp_path / "a" / "config.yaml").write_text("name: a\nrun: 1\nconfig: {run: 2}\nsamples_per_s: 3\n")
    frames = load(tmp_path)
    row = frames.runs.row(0, named=True)
    assert (row["run"], row["config.run"], row["config.config.run"], row["samples_per_s"]) == ("a", 1, 2, 3)


def test_values_that_do_not_fit(tmp_path):
    two_client_run(tmp_path / "a")
    deep = "{a: " * 20 + "1" + "}" * 20
    (tmp_path / "a" / "config.yaml").write_text(
        f'name: "a\\e[31m\\n"\nbig: {10**30}\nlong: {"x" * 100_000}\ndeep: {deep}\nodd: {{"1": 2}}\n'
        f"many: [{'1, ' * 5000}]\n"
    )
    row = load(tmp_path).runs.row(0, named=True)
    assert (row["name"], row["big"], row["odd"]) == (r"a\x1b[31m\n", str(10**30), '{"1":2}')
    assert (len(row["long"]), len(row["many"])) == (3999, 3999)
    assert row["deep" + ".a" * 8].startswith('{"a":{"a":')
    assert row["arm"] == r"a\x1b[31m\n"


def test_sections_are_those_of_jobs():
    def is_section(annotation):
        kinds = getattr(annotation, "__args__", (annotation,))
        return any(isinstance(kind, type) and issubclass(kind, Section) for kind in kinds) or any(
            is_section(kind) for kind in kinds if hasattr(kind, "__args__")
        )

    fields = JobConfig.model_fields
    assert {name for name, field in fields.items() if is_section(field.annotation)} == set(records.SECTIONS)


def test_export_follows_no_link(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    target = elsewhere / "target"
    target.write_text("precious")
    folder = root / "tables"
    folder.mkdir()
    for name in (*(f"{table}.csv" for table in TABLES), *(f".{table}.csv.new" for table in TABLES), "columns.csv"):
        (folder / name).symlink_to(target)
    export(load(root), folder, "csv")
    assert target.read_text() == "precious"
    assert not (folder / "runs.csv").is_symlink()
    assert len(pl.read_csv(folder / "runs.csv")) == 2


def test_the_default_folder_of_an_export_is_no_link(root, tmp_path_factory, monkeypatch):
    from hpclbfl.cli.reports import export as command

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "tables").symlink_to(elsewhere)
    with pytest.raises(EnvironmentFault, match="tables: is a link, and what it points to is not touched"):
        command(root, "csv", None)
    assert list(elsewhere.iterdir()) == []
    command(root, "csv", root / "tables")
    assert (elsewhere / "runs.csv").exists()


@pytest.mark.slow
def test_figures_follow_no_link_and_overwrite_no_other(tmp_path):
    for number, (model, data) in enumerate((("a/b", "x"), ("a-b", "x"), ("a/b", "y"), ("a-b", "y"))):
        for seed in (0, 1):
            path = tmp_path / "runs" / f"{number}{seed}"
            two_client_run(path, seed=seed)
            job = f"name: a\nseed: {seed}\nclients: 2\nmodel: {{name: {model}}}\ndata: {{name: {data}}}\n"
            RunFolder(path).write_config(job)
    frames = load(tmp_path / "runs")
    report = make_report(frames)
    target, folder = tmp_path / "target", tmp_path / "figures"
    target.write_text("precious")
    folder.mkdir()
    for path, _ in write_figures(report, tmp_path / "first", ["svg"]):
        (folder / path.name).symlink_to(target)
    written = [path for path, _ in write_figures(report, folder, ["svg"])]
    assert target.read_text() == "precious"
    assert len(set(written)) == len(written)
    assert all(path.read_bytes().startswith(b"<svg") for path in written)


def test_titles_that_look_alike_have_figures_of_their_own():
    from hpclbfl.analysis.show.render import _endings

    assert _endings(["", "a/b, x", "a-b, x", "x" * 500]) == {
        "": "",
        "a/b, x": "-a-b-x",
        "a-b, x": "-a-b-x-2",
        "x" * 500: "-" + "x" * 79,
    }


def test_a_page_takes_nothing_for_markup(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)> &lt; ${x} {{ 7 * 7 }} \u202e"
    for number, name in enumerate((evil, "plain")):
        path = tmp_path / f"<b>{number}"
        two_client_run(path, state="failed" if number else "done")
        job = {"name": name, "clients": 2, "sync": {"kind": name}, "model": {"name": name}, "data": {"name": name}}
        (path / "config.yaml").write_text(json.dumps(job))
        RunFolder(path).attempt(0).write_provenance({"host": evil, "num_ranks": 2})
        RunFolder(path).write_status("failed", error=evil)
    frames = load(tmp_path)
    text = page(make_report(frames))
    assert text.count("<script") == text.count("</script>") == 3
    assert not re.search(r"<img src=x|<b>|\u202e", text)
    assert "{{ 7 * 7 }}" in text
    data = json.loads(text.partition('id="page-data">')[2].partition("</script>")[0])
    assert len(data["arms"]) == 2


@pytest.mark.parametrize(
    ("text", "markdown", "latex"),
    [
        ("a|b", r"a\|b", r"a\textbar{}b"),
        ("a\nb\x1b", r"a\\nb\\x1b", r"a\textbackslash{}nb\textbackslash{}x1b"),
        ("[x](http://y)", r"\[x\](http://y)", "[x](http://y)"),
        ("![x](y)", r"!\[x\](y)", "![x](y)"),
        ("&lt;b>", r"\&lt;b>", r"\&lt;b\textgreater{}"),
        ("<b>`*_~", r"\<b>\`\*\_\~", r"\textless{}b\textgreater{}`*\_\textasciitilde{}"),
        (r"\input{x}$%#^", r"\\input{x}$%#^", r"\textbackslash{}input\{x\}\$\%\#\textasciicircum{}"),
    ],
)
def test_tables_take_nothing_for_markup(text, markdown, latex):
    table = TextTable("t", ("a",), [(text,)], frozenset({"a"}))
    assert to_markdown(table).splitlines()[4] == f"| {markdown} |"
    assert to_latex(table).splitlines()[7] == rf"    {latex} \\"
    # Where there is nothing but a note.
    note = TextTable("t", (), [], notes=(text,))
    assert (to_markdown(note), to_latex(note)) == (f"{markdown}\n", f"{latex}\n")
