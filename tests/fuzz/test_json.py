"""JSON: a run's status, DONE and lock files, damaged or made up."""

import json

from hypothesis import strategies as st

from hpclbfl.core.errors import DataError
from hpclbfl.core.jsonfile import parse_json
from hpclbfl.runs.lock import Owner
from tests.fuzz.budget import fuzz

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ("token", "time", "processes", "slurm", "restart", "cluster", "released", "checksum")
_OBJECTS = st.dictionaries(st.sampled_from(_FIELDS), _VALUES).map(json.dumps).map(str.encode)
_MUTATED = st.tuples(_OBJECTS, st.integers(0, 200), st.binary(max_size=4)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
)


def test_json():
    def check(content: bytes) -> None:
        for kind in (dict, Owner):
            try:
                found = parse_json(content, kind, "x.json")
            except DataError as error:
                assert str(error).startswith("x.json: ") and "\n" not in str(error)
            else:
                assert isinstance(found, kind)

    assert fuzz(st.binary(max_size=100) | _OBJECTS | _MUTATED, check) > 0
