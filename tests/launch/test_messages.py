"""What mpirun says about ranks that it could not start, and its notices told from the ranks' lines."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hpclbfl.launch import relay
from hpclbfl.launch.messages import OWN_ERROR, explain_end, find_death, find_start_failure
from hpclbfl.launch.relay import Relay

RULE = "-" * 74 + "\n"
NO_DAEMON = (
    f"{RULE}ORTE was unable to reliably start one or more daemons.\nThis usually is caused by:\n\n"
    f"* not finding the required libraries and/or binaries on\n  one or more nodes.\n{RULE}"
)
NO_PROGRAM = (
    f"{RULE}mpirun was unable to launch the specified application as it could not access\nor execute an executable:\n\n"
    f"Executable: /no/such/exe\nNode: n7\n\nwhile attempting to start process rank 0.\n{RULE}"
)
NOT_FOUND = (
    f"{RULE}mpirun was unable to find the specified executable file, and therefore\ndid not launch the job.\n\n"
    f"Node:       n7\nExecutable: nosuchcmd\n{RULE}"
)
NO_PML = f"{RULE}A requested component was not found.  This\n\nHost:      n7\nFramework: pml\nComponent: nosuch\n{RULE}"
IN_INIT = (
    f"{RULE}It looks like MPI_INIT failed for some reason; your parallel process is\nlikely to abort.  There are many "
    f'reasons\n\n  mca_pml_base_open() failed\n  --> Returned "Not found" (-13) instead of "Success" (0)\n{RULE}'
)
NO_FOLDER = (
    f"{RULE}A call to mkdir was unable to create the desired directory:\n\n  Directory: /proc/x\n"
    f"  Error:     No such file or directory\n\nPlease check to ensure you have adequate permissions\n{RULE}"
)
NO_SLOTS = (
    f"{RULE}There are not enough slots available in the system to satisfy the 4\nslots that were requested by the "
    f"application:\n\n  hostname\n{RULE}"
)
ABORTED = f"{RULE}MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD\nwith errorcode 2.\n{RULE}"
USAGE = "mpirun: Error: unknown option \"--foo\"\nType 'mpirun --help' for usage.\n"
NOISE = (
    "[vm:08724] [[20202,0],0] ORTE_ERROR_LOG: Data unpack would read past end of buffer in file show_help.c line 501\n"
    "[vm:08724] PMIX ERROR: UNREACHABLE in file pmix_server.c at line 2198\n"
    "[vm:08724] 1 more process has sent help message help-mpi-api.txt / mpi-abort\n"
)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            f"ssh: Could not resolve hostname n9: Name or service not known\n{NO_DAEMON}",
            "mpirun cannot reach all hosts: ssh: Could not resolve hostname n9: Name or service not known",
        ),
        (NO_DAEMON, "mpirun cannot reach all hosts: it does not say why"),
        (NO_PROGRAM, "mpirun cannot start /no/such/exe on n7"),
        (NOT_FOUND, "mpirun cannot start nosuchcmd on n7"),
        (NOISE + NO_PML + IN_INIT, "Open MPI has no pml 'nosuch' on n7 that could be used"),
        (IN_INIT, "Open MPI failed in MPI_Init: mca_pml_base_open() failed"),
        ("[vm:1] *** An error occurred in MPI_Init_thread\n", "Open MPI failed in MPI_Init"),
        (NO_FOLDER, "mpirun cannot make /proc/x: No such file or directory"),
        (
            NO_SLOTS,
            "mpirun: There are not enough slots available in the system to satisfy the 4 slots that were requested by "
            "the application",
        ),
        (USAGE, 'mpirun: unknown option "--foo"'),
    ],
)
@pytest.mark.parametrize("code", [1, 132, 213, 255])
def test_mpiruns_own_failure_is_told_in_its_words(said: str, reason: str, code: int) -> None:
    assert find_start_failure(said) == reason
    assert explain_end(code, said) == reason


@pytest.mark.parametrize("said", ["", NOISE, ABORTED, f"{OWN_ERROR} rank 0: no\n{NO_PML}", "Traceback\n"])
def test_ranks_that_have_spoken_were_started(said: str) -> None:
    assert find_start_failure(said) is None


def test_codes_are_signals_only_where_there_is_such_a_signal() -> None:
    assert explain_end(137, "") == "ended by SIGKILL"
    assert explain_end(255, "") == "mpirun ended with exit code 255 and does not say why"
    assert explain_end(255, "", always=False) is None
    assert explain_end(1, "[vm:1] *** An error occurred in MPI_Allreduce\n") == "Open MPI failed in MPI_Allreduce"


def test_hostile_words_do_not_reach_the_terminal() -> None:
    death = find_death("mpirun noticed that process rank 1 with PID 0 on node n\x1b[31m exited on signal 9 (Killed).")
    assert str(death) == "rank 1 on n\\x1b[31m was killed by SIGKILL (out of memory?)"
    assert find_death(f"process rank {'9' * 5000} with PID 0 on node n exited on signal 9") is None
    reason = find_start_failure(f"{RULE}Executable: /\x1b[2J{'x' * 10_000}\n{RULE}")
    assert reason is not None and "\x1b" not in reason and len(reason) < 300


class Pipe:
    """A relay, and what has come out of it."""

    def __init__(self, tmp_path: Path) -> None:
        source, self._sink = os.pipe()
        self._out = tmp_path / "out"
        self._target = os.open(self._out, os.O_CREAT | os.O_WRONLY)
        self.relay = Relay(os.fdopen(source, "rb", 0), self._target)

    def write(self, text: str) -> None:
        os.write(self._sink, text.encode())

    def text(self) -> str:
        return self._out.read_bytes().decode()

    def came(self, text: str) -> bool:
        """Whether all that has come out, by now or soon, is this."""
        end = time.monotonic() + 5
        while self.text() != text and time.monotonic() < end:
            time.sleep(0.01)
        return self.text() == text

    def end(self, show: bool = False) -> str:
        """All that has come out in the end."""
        os.close(self._sink)
        self.relay.join()
        self.relay.finish(show)
        os.close(self._target)
        return self.text()


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    return Pipe(tmp_path)


OWN = f"{OWN_ERROR} rank 0: no luck\n"


@pytest.mark.parametrize("show", [False, True])
def test_notices_come_last_or_not_at_all(pipe: Pipe, show: bool) -> None:
    for part in (
        "a\n",
        NOISE,
        OWN[:9],
        OWN[9:],
        ABORTED[:80],
        ABORTED[80:],
        "mpirun: Forwarding signal 12 to job\n",
        "b",
    ):
        pipe.write(part)
        time.sleep(0.01)
    assert pipe.end(show) == f"a\n{OWN}b" + (NOISE + ABORTED if show else "")


def test_an_error_of_ours_in_the_middle_of_a_notice_goes_on(pipe: Pipe) -> None:
    pipe.write(f"{RULE}MPI_ABORT was\n{OWN}invoked\n{RULE}")
    assert pipe.came(OWN)
    pipe.end()


def test_text_comes_as_it_is_written_also_without_a_line_end(pipe: Pipe) -> None:
    expected = ""
    for text in ("\r\x1b[2Kepoch 1", "  epoch 2", " - [x] -", "\n"):
        pipe.write(text)
        expected += text
        assert pipe.came(expected)
    pipe.write("[not a notice]\n--- nor this\nmy line\n")
    assert pipe.end() == f"{expected}[not a notice]\n--- nor this\nmy line\n"


def test_a_notice_that_no_end_follows_is_a_warning(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "HOLD_S", 0.2)
    pipe.write(f"{RULE}WARNING: this may hang\n{RULE}")
    assert pipe.came(f"{RULE}WARNING: this may hang\n{RULE}")
    pipe.write("on\n")
    assert pipe.end() == f"{RULE}WARNING: this may hang\n{RULE}on\n"
