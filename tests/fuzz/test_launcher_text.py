"""What launchers say on stderr: any text, and such as mpirun and srun write, cut and mixed."""

import itertools
import os

from hypothesis import strategies as st

from hpclbfl.launch.messages import Death, Notices, explain_end, find_death, find_start_failure, is_echo
from hpclbfl.launch.relay import Relay
from tests.fuzz.budget import fuzz

_PARTS = st.sampled_from(
    (
        "-" * 74 + "\n",
        "\n",
        "\r",
        "process rank ",
        " with PID 0 on node ",
        " with PID 0 on\nnode ",
        " exited on signal ",
        " exiting improperly",
        "Process name: [[1,1],",
        "]\n  Exit code:    ",
        "srun: error: n7: task ",
        "srun: error: n7: tasks 0-",
        ": Exited with exit code ",
        ": Out Of Memory\n",
        ": Killed\n",
        "hpclbfl: error: ",
        "MPI_ABORT was invoked",
        "Executable: ",
        "\nNode: ",
        "\nHost: ",
        "Framework: ",
        "\nComponent: ",
        "Directory: ",
        "\nError: ",
        "ORTE was unable to reliably start one or more daemons",
        "mpirun: Error: ",
        "mpirun: Forwarding signal 12 to job\n",
        "[vm:1] PMIX ERROR: x\n",
        "MPI_INIT failed for some reason",
        "\n  f() failed\n",
        "Timeout (0:10:00)!\n",
    )
)
_NUMBERS = st.integers(0, 10**12).map(str) | st.sampled_from(("9" * 5000, "0", "-1", "٣", "²", "1e9"))
_TEXT = st.lists(_PARTS | _NUMBERS | st.text(max_size=12), max_size=30).map("".join)


def test_launcher_words():
    def check(example: tuple[str, int, int | None]) -> None:
        said, code, signum = example
        death = find_death(said)
        assert death is None or (isinstance(death, Death) and death.rank < 10**9 and death.code < 1000)
        for line in (death, find_start_failure(said), explain_end(code, said, signum, lambda rank: f"({rank})")):
            if line is not None:
                text = str(line)
                assert text and text.isprintable() and len(text) < 500

    examples = st.tuples(_TEXT | st.text(max_size=200), st.integers(0, 255), st.none() | st.integers(0, 64))
    assert fuzz(examples, check) > 0


def test_relay():
    """Cut anywhere, all that was written comes out, lines that belong to no notice first and in their order."""

    def check(example: tuple[bytes, list[int]]) -> None:
        content, cuts = example
        source, sink = os.pipe()
        target = os.memfd_create("out")
        try:
            relay = Relay(os.fdopen(source, "rb", 0), target)
            places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
            for begin, end in itertools.pairwise(places):
                os.write(sink, content[begin:end])
            os.close(sink)
            assert relay.join() == content.decode(errors="replace")
            relay.finish(show=True)
            out = os.pread(target, len(content) + 1, 0)
        finally:
            os.close(target)
        is_notice = Notices()
        lines = [line for line in content.split(b"\n")[:-1] if not is_echo(line.decode(errors="replace"))]
        plain = [line for line in lines if not is_notice(line.decode(errors="replace"))]
        assert sorted(out) == sorted(b"\n".join([*lines, content.split(b"\n")[-1]]))
        assert out.split(b"\n")[: len(plain)] == plain

    texts = _TEXT.map(lambda text: text.encode(errors="replace"))
    assert fuzz(st.tuples(texts, st.lists(st.integers(0, 10**6), max_size=5)), check) > 0
