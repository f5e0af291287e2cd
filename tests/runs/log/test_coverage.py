"""Which rows of which attempt count, and which are missing: cases by hand."""

import pytest

from hpclbfl.runs.log.coverage import NO_LIMIT, Attempt, LogSpan, Problem, find_limits, find_problems


def attempt(number, *spans, **provenance):
    """An attempt whose rank r covers the steps from spans[r][0] to before spans[r][1]; None: a log that is torn."""
    path = f"a/{number}"
    logs = [
        LogSpan(f"{path}/{rank}", problem="torn") if span is None else LogSpan(f"{path}/{rank}", *span)
        for rank, span in enumerate(spans)
    ]
    return Attempt(path, logs, provenance)


@pytest.mark.parametrize(
    ("attempts", "limits"),
    [
        ([], []),
        ([attempt(0, (0, 5), (0, 4))], [NO_LIMIT]),
        # Went on from the newest checkpoint; from the one before; anew.
        ([attempt(0, (0, 5)), attempt(1, (4, 9)), attempt(2, (8, 9))], [4, 8, NO_LIMIT]),
        ([attempt(0, (0, 5)), attempt(1, (4, 9)), attempt(2, (2, 9))], [2, 2, NO_LIMIT]),
        ([attempt(0, (0, 5)), attempt(1, (4, 9)), attempt(2, (0, 9))], [0, 0, NO_LIMIT]),
        # Without any log: it ended before its first step, whatever it was to go on from.
        ([attempt(0, (0, 5)), attempt(1, resumed_from_step=4)], [NO_LIMIT, NO_LIMIT]),
        # Its logs are torn: its provenance tells, or nothing.
        ([attempt(0, (0, 5)), attempt(1, None, resumed_from_step=4)], [4, NO_LIMIT]),
        ([attempt(0, (0, 5)), attempt(1, None)], [NO_LIMIT, NO_LIMIT]),
        ([attempt(0, (0, 5)), attempt(1, None, (3, 9), resumed_from_step=4)], [3, NO_LIMIT]),
    ],
)
def test_limits(attempts, limits):
    assert find_limits(attempts) == limits


NOT_DONE = [attempt(0, (0, 6), (0, 4)), attempt(1, (4, 5), (4, 4))]


@pytest.mark.parametrize(
    ("attempts", "done", "expected"),
    [
        # Nothing is missing.
        ([], None, []),
        ([attempt(0), attempt(1, num_ranks=2)], None, []),
        (NOT_DONE, None, []),
        ([*NOT_DONE, attempt(2, (4, 9), (4, 9))], {"step": 9}, []),
        ([attempt(0, (0, 9)), attempt(1, (9, 9), num_ranks=1)], {"step": 9}, []),
        ([attempt(0, (0, 9))], {}, []),
        # Done, and no log.
        ([], {"step": 9}, [("a", "no log has the rows of steps 0 to 8", True)]),
        ([attempt(0, num_ranks=2)], {"step": 1}, [("a", "no log has the rows of step 0", True)]),
        ([attempt(0)], {}, [("a", "no log has the rows of any step", True)]),
        # The first attempt is gone.
        ([attempt(1, (4, 6))], None, [("a", "no log has the rows of steps 0 to 3", True)]),
        ([attempt(1, None, resumed_from_step=4)], None, [
            ("a", "no log has the rows of steps 0 to 3", True), ("a/1/0", "torn", True),
        ]),
        ([attempt(1, None), attempt(2, (4, 6))], None, [("a/1/0", "torn", True)]),
        # Logs that end too early: before the next attempt's start, before the run's end.
        ([attempt(0, (0, 6), (0, 3)), attempt(1, (4, 5), (4, 4))], None, [
            ("a/0/1", "lacks the rows of step 3", True),
        ]),
        ([attempt(0, (0, 4), (0, 4)), attempt(1, (4, 9), (4, 4))], {"step": 9}, [
            ("a/1/1", "lacks the rows of steps 4 to 8", True),
        ]),
        ([attempt(0, (0, 4)), attempt(1, num_ranks=1)], {"step": 9}, [
            ("a/0/0", "lacks the rows of steps 4 to 8", True),
        ]),
        # Damage costs rows where the attempt has steps that no later one trained again.
        ([attempt(0, (0, 4), None)], None, [("a/0/1", "torn", True)]),
        ([attempt(0, (0, 4), None), attempt(1, (4, 6))], None, [("a/0/1", "torn", True)]),
        ([attempt(0, (0, 4), None), attempt(1, (0, 6))], None, [("a/0/1", "torn", False)]),
        ([attempt(0, (0, 4)), attempt(1, (4, 4), num_ranks=2), attempt(2, (4, 9))], {"step": 9}, [
            ("a/1", "1 of 2 ranks left no log", False),
        ]),
        ([attempt(0, (0, 4)), attempt(1, None, resumed_from_step=4), attempt(2, (4, 9))], {"step": 9}, [
            ("a/1/0", "torn", False),
        ]),
        ([attempt(0, (0, 4)), attempt(1, None), attempt(2, (4, 9))], {"step": 9}, [("a/1/0", "torn", True)]),
        ([attempt(0, (0, 9)), attempt(1, (9, 9), None, num_ranks=3)], {"step": 9}, [
            ("a/1/1", "torn", False), ("a/1", "1 of 3 ranks left no log", False),
        ]),
    ],
)  # fmt: skip
def test_problems(attempts, done, expected):
    assert find_problems("a", attempts, done) == [Problem(*problem) for problem in expected]
