from __future__ import annotations

import io

import pytest

from hpclbfl.core import progress as module
from hpclbfl.core.progress import TERMINAL_COLUMNS, Progress

pytestmark = pytest.mark.usefixtures("terminal")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    monkeypatch.delenv(TERMINAL_COLUMNS, raising=False)
    return made


def test_one_line_per_30_s_without_a_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    log = io.StringIO()
    with Progress("toy BSP", 4, True, log) as bar:
        for step in range(1, 101):
            clock.now += 1
            if step == 40:
                bar.evaluated("top-1 50.0 %")
            bar.step(step, step / 25, 1.0 / step)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "toy BSP: epoch 1.20/4  step 30  loss 0.033  30 s",
        "toy BSP: epoch 2.40/4  step 60  loss 0.017  top-1 50.0 %  60 s",
        "toy BSP: epoch 3.60/4  step 90  loss 0.011  top-1 50.0 %  90 s",
    ]
    assert [line.removeprefix("toy BSP: ") for line in lines] == log.getvalue().splitlines()


def test_other_ranks_are_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("toy", 4, False) as bar:
        clock.now += 100
        bar.step(1, 1.0, 1.0)
        bar.say("hello")
    assert capsys.readouterr().err == ""


def test_a_bar_where_the_launcher_has_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TERMINAL_COLUMNS, "90")
    monkeypatch.setenv("TERM", "xterm")
    with Progress("toy", None, True) as bar:
        bar.step(7, 0.5, 1.25)
        bar.say("a line above the bar")
    text = capsys.readouterr().err
    assert "epoch 0.50  step 7  loss 1.250" in text
    assert "a line above the bar" in text
    assert "\x1b[" in text
