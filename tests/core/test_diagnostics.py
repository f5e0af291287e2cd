"""Diagnostics: which lines reach the terminal, and that a script gets none unless it asks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from hpclbfl.core.diagnostics import LOG_LEVEL, Diagnostics, level_from, on_terminal, set_level, shows, terminal
from hpclbfl.core.errors import ConfigError

logger = Diagnostics("hpclbfl.tests")


def tell_all() -> None:
    logger.debug("a detail")
    logger.info("a line")
    logger.warning("a warning")


@pytest.fixture(autouse=True)
def no_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOG_LEVEL, raising=False)


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        ("error", []),
        ("warning", ["hpclbfl: a warning"]),
        ("info", ["hpclbfl: a line", "hpclbfl: a warning"]),
        (None, ["hpclbfl: a line", "hpclbfl: a warning"]),
        ("debug", ["hpclbfl: a detail", "hpclbfl: a line", "hpclbfl: a warning"]),
    ],
)
def test_levels(capsys: pytest.CaptureFixture[str], level: str | None, lines: list[str]) -> None:
    with on_terminal(level):  # type: ignore[arg-type]
        tell_all()
    assert capsys.readouterr().err.splitlines() == lines


def test_the_environment_sets_the_level_and_is_restored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LOG_LEVEL, "warning")
    with on_terminal():
        tell_all()
        with on_terminal("debug"):
            assert os.environ[LOG_LEVEL] == "debug"
            logger.debug("inside")
        assert os.environ[LOG_LEVEL] == "warning"
        logger.info("outside")
        set_level("info")
        assert (os.environ[LOG_LEVEL], shows("info"), shows("debug")) == ("info", True, False)
    assert os.environ[LOG_LEVEL] == "warning"
    assert capsys.readouterr().err == "hpclbfl: a warning\nhpclbfl: inside\n"


def test_an_unknown_level_is_one_line() -> None:
    with pytest.raises(ConfigError) as raised:
        level_from({LOG_LEVEL: "loud\x1b"})
    assert str(raised.value) == f"{LOG_LEVEL}: 'loud\\x1b' is not a level; choose one of error, warning, info, debug"
    assert level_from({LOG_LEVEL: ""}) == "info"


def test_nothing_stays_installed() -> None:
    root = logging.getLogger("hpclbfl")
    before = list(root.handlers), root.level, root.propagate
    with pytest.raises(ValueError, match="mine"), on_terminal("debug"):
        raise ValueError("mine")
    assert (list(root.handlers), root.level, root.propagate) == before
    assert terminal() is None


def test_titles(capsys: pytest.CaptureFixture[str]) -> None:
    with on_terminal():
        Diagnostics("hpclbfl.a", title="").info("bare")
        Diagnostics("hpclbfl.a", title="run\x1b").info("100 % of %s")
        Diagnostics("__main__").warning("of a module that is run")
    assert capsys.readouterr().err == "bare\nrun\\x1b: 100 % of %s\nhpclbfl: of a module that is run\n"


def test_a_bar_takes_the_lines_and_has_its_own_title(capsys: pytest.CaptureFixture[str]) -> None:
    above: list[str] = []
    run = Diagnostics("hpclbfl.a", title="toy")
    with on_terminal():
        handler = terminal()
        assert handler is not None
        with handler.above("toy", above.append):
            run.info("of the run")
            logger.info("of the program")
        logger.info("after it")
    assert above == ["of the run", "hpclbfl: of the program"]
    assert capsys.readouterr().err == "hpclbfl: after it\n"


def test_only_the_first_rank_logs_details(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with on_terminal("debug"):
        tell_all()
        set_level("debug")
        logger.debug("again")
        # Processes that they start inherit the requested level.
        assert os.environ[LOG_LEVEL] == "debug"
    assert capsys.readouterr().err == "hpclbfl: a line\nhpclbfl: a warning\n"


def test_a_stream_that_cannot_be_written_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", closefd=True) as stream, monkeypatch.context() as patch, on_terminal():
        patch.setattr(sys, "stderr", stream)
        with pytest.raises(BrokenPipeError):
            logger.info("nobody reads")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


def test_a_script_gets_records_that_any_handler_can_print(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "hpclbfl"):
        logger.info("\x1b[2J forged\nhpclbfl: error: no")
        with logger.timing("a stage"):
            pass
    assert caplog.messages[0] == "\\x1b[2J forged\\nhpclbfl: error: no"
    assert caplog.messages[1].startswith("a stage: 0.0") and caplog.records[1].levelname == "DEBUG"
    assert caplog.records[0].name == "hpclbfl.tests"
    assert caplog.records[0].funcName == "test_a_script_gets_records_that_any_handler_can_print"


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ("", ""),
        ("import logging; logging.basicConfig(format='%(levelname)s %(message)s')\n", "WARNING w\n"),
    ],
)
def test_a_script_is_printed_nothing_unless_it_asks(setup: str, said: str) -> None:
    program = f"{setup}from hpclbfl.core.diagnostics import Diagnostics\nDiagnostics('hpclbfl.x').warning('w')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", said)
