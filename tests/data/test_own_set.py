"""Sets of the user's own: arrays and batches made on the fly, and what is said of those that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.config.component_configs import component_config
from hpclbfl.config.components import DATASETS
from hpclbfl.config.job import load_job
from hpclbfl.config.sections import DataConfig
from hpclbfl.core.errors import DataError
from hpclbfl.data.datasets import Dataset, load_dataset
from hpclbfl.data.loaders import data_spec, make_loaders

HEAD = (
    "import numpy as np, torch\nfrom hpclbfl.data.examples import Examples\n"
    "class Own:\n    def __init__(self, config):\n"
)
CPU = torch.device("cpu")
N = 6


def config_with(tmp_path: Path, body: str, **keys: Any) -> DataConfig:
    """Of a set whose constructor has this body."""
    (tmp_path / "own.py").write_text(HEAD + "".join(f"        {line}\n" for line in body.strip().splitlines()))
    values = {"name": str(tmp_path / "own.py:Own"), **keys}
    found: DataConfig = component_config(DATASETS, values, "job.yaml", "data")
    return found


def opened(tmp_path: Path, body: str, **keys: Any) -> Dataset:
    return load_dataset(config_with(tmp_path, body, **keys))


BOTH = "x, y = {}, {}\nself.train = self.test = Examples(x, y{})"


@pytest.mark.parametrize(
    ("inputs", "dtype", "expected"),
    [
        ("np.arange(12).reshape(6, 2)", torch.int64, torch.int64),
        ("np.arange(12, dtype=np.uint8).reshape(6, 2)", torch.uint8, torch.uint8),
        ("np.arange(12, dtype='>i4').reshape(6, 2)", torch.int32, torch.int32),
        ("np.zeros((6, 2), bool)", torch.bool, torch.bool),
        ("np.arange(12.0).reshape(6, 2)[:, ::-1]", None, torch.float32),
        ("torch.arange(12.0, dtype=torch.float16, requires_grad=True).reshape(6, 2)", None, torch.float32),
    ],
)
def test_whole_numbers_stay_and_others_become_the_jobs(
    tmp_path: Path, inputs: str, dtype: torch.dtype | None, expected: torch.dtype
) -> None:
    config = config_with(tmp_path, BOTH.format(inputs, "np.arange(6, dtype=np.int16)", ""))
    dataset = load_dataset(config)
    train, test = make_loaders(dataset, config, 0, CPU, torch.float32)
    spec = data_spec(dataset, train)
    assert spec == ((2,), 0, dtype, (), torch.int64)
    x, y = train.batch(np.array([5, 1]), np.zeros(2, np.int64))
    assert (x.dtype, y.dtype, y.tolist()) == (expected, torch.int64, [5, 1])
    assert torch.equal(x, test.batch(np.array([5, 1]), np.ones(2, np.int64))[0])
    assert not x.requires_grad and len(train) == N and torch.equal(train.example(8)[6:], train.example(2))


def test_labels_are_targets_of_classes_and_groups_are_kept(tmp_path: Path) -> None:
    body = "self.classes = ['a', 'b']\n" + BOTH.format(
        "np.zeros((6, 3))", "np.array([0, 1, 1, 0, 1, 0], np.int16)", ", groups=np.array([7, 7, 2, 2, 2, 9], np.int32)"
    )
    dataset = opened(tmp_path, body)
    assert dataset.classes == ("a", "b") and dataset.name == "own.py:Own"
    assert dataset.train.labels is not None and dataset.train.labels.tolist() == [0, 1, 1, 0, 1, 0]
    assert dataset.train.groups is not None and dataset.train.groups.tolist() == [7, 7, 2, 2, 2, 9]
    part = opened(tmp_path, body, limit=3).train
    # The first of class 0, the first of class 1, the second of class 0.
    assert part.labels is not None and part.labels.tolist() == [0, 1, 0] and part.groups.tolist() == [7, 7, 2]


def test_limit_is_even_over_groups_where_there_are_no_classes(tmp_path: Path) -> None:
    body = BOTH.format("np.arange(6.0)", "np.arange(6.0)", ", groups=[0, 0, 0, 0, 1, 2]").replace(
        "[0, 0", "np.array([0, 0"
    )
    dataset = opened(tmp_path, body.replace("1, 2]", "1, 2])"), limit=4)
    assert dataset.train.groups is not None and dataset.train.groups.tolist() == [0, 0, 1, 2]
    assert len(opened(tmp_path, BOTH.format("np.arange(6.0)", "np.arange(6.0)", ""), limit=4).test) == 4


def test_the_fingerprint_covers_all_content_and_not_the_limit(tmp_path: Path) -> None:
    x, y, marks = "np.arange(6.0)", "np.arange(6)", ", groups=np.arange(6)"
    bodies = [
        BOTH.format(x, y, marks),
        BOTH.format("np.arange(6.0) + 1", y, marks),
        BOTH.format("np.arange(6.0).reshape(6, 1)", y, marks),
        BOTH.format("np.arange(6.0).astype(np.float32)", y, marks),
        BOTH.format(x, "np.arange(6)[::-1]", marks),
        BOTH.format(x, y, ", groups=np.zeros(6, int)"),
        BOTH.format(x, y, ""),
        BOTH.format(x, y, ", labels=np.arange(6)"),
        "self.classes = list('abcdef')\n" + BOTH.format(x, y, marks),
    ]
    found = [opened(tmp_path, body).fingerprint for body in bodies]
    assert len(set(found)) == len(bodies) and all(len(one) == 64 for one in found)
    assert opened(tmp_path, bodies[0], limit=2).fingerprint == found[0]


MADE = """
class Made:
    def __len__(self):
        return 6
    def batch(self, samples, passes):
        return {}
    fingerprint = 'numbers'
{}
self.train = self.test = Made()
"""


def test_batches_that_are_made_know_their_samples_and_passes(tmp_path: Path) -> None:
    body = MADE.format("samples * 10 + passes, samples.astype(float)", "    groups = np.array([0, 0, 0, 1, 1, 1])")
    config = config_with(tmp_path, body, limit=4)
    dataset = load_dataset(config)
    train, _ = make_loaders(dataset, config, 0, CPU, torch.float64)
    x, y = train.batch(np.array([3, 0]), np.array([2, 5]))
    # With the limit places 0 to 3 are samples 0, 1, 3 and 4.
    assert (x.tolist(), y.tolist(), x.dtype, y.dtype) == ([42, 5], [4.0, 0.0], torch.int64, torch.float64)
    other = opened(tmp_path, body.replace("'numbers'", "'others'"))
    assert other.fingerprint != dataset.fingerprint


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "has no 'train': a set has train and test"),
        ("self.train = Examples(np.zeros(3), np.zeros(3))", "has no 'test': a set has train and test"),
        (
            "self.train = self.test = [1, 2]",
            "train: has neither 'inputs' and 'targets' nor a length and 'batch': see hpclbfl.data.examples.Examples",
        ),
        (BOTH.format("np.zeros(3)", "np.zeros(4)", ""), "train: has 3 inputs and 4 targets"),
        (BOTH.format("np.zeros((0, 3))", "np.zeros(0)", ""), "the train split is empty, it needs samples"),
        (
            "self.train, self.test = Examples(np.zeros(3), np.zeros(3)), Examples(np.zeros(0), np.zeros(0))",
            "the test split is empty, it needs samples",
        ),
        (BOTH.format("[[1], [2, 3]]", "np.zeros(2)", ""), "train: inputs are a list, not an array of NumPy or torch"),
        (BOTH.format("None", "np.zeros(2)", ""), "train: inputs are None, not an array of NumPy or torch"),
        (
            BOTH.format("np.array(['a', 'b'])", "np.zeros(2)", ""),
            "train: inputs have the type <U1, right are bool, uint8, signed whole numbers and floating point",
        ),
        (
            BOTH.format("np.array([1, None])", "np.zeros(2)", ""),
            "train: inputs have the type object, right are bool, uint8, signed whole numbers and floating point",
        ),
        (
            BOTH.format("np.zeros(2, np.uint16)", "np.zeros(2)", ""),
            "train: inputs have the type uint16, right are bool, uint8, signed whole numbers and floating point",
        ),
        (
            BOTH.format("torch.zeros(2, dtype=torch.complex64)", "np.zeros(2)", ""),
            "train: inputs have the type complex64, right are bool, uint8, signed whole numbers and floating point",
        ),
        (
            BOTH.format("np.zeros(2)", "torch.eye(2).to_sparse()", ""),
            "train: targets are a tensor without plain values: give a dense one",
        ),
        (
            BOTH.format("np.array(1.0)", "np.zeros(1)", ""),
            "train: inputs have the shape [], not [N, ...] with all sizes above 0",
        ),
        (
            BOTH.format("np.zeros((2, 0))", "np.zeros(2)", ""),
            "train: inputs have the shape [2, 0], not [N, ...] with all sizes above 0",
        ),
        (
            "self.train = Examples(np.zeros((3, 4)), np.zeros(3))\nself.test = Examples(np.zeros((3, 5)), np.zeros(3))",
            "train has inputs of [4] float64, test of [5] float64",
        ),
        (
            "self.train = Examples(np.zeros(3), np.zeros(3))\nself.test = Examples(np.zeros(3), np.zeros(3, int))",
            "train has targets of [] float64, test of [] int64",
        ),
        (
            BOTH.format("np.zeros(2)", "np.zeros(2)", ", groups=np.zeros(3, int)"),
            "train: groups have the shape [3] and the type torch.int64, not a whole number for each of 2 samples",
        ),
        (
            BOTH.format("np.zeros(2)", "np.zeros(2)", ", labels=np.zeros(2)"),
            "train: labels have the shape [2] and the type torch.float64, not a whole number for each of 2 samples",
        ),
        (
            "self.classes = ['a', 'b']\n" + BOTH.format("np.zeros(3)", "np.arange(3)", ""),
            "train: has the label 2, right are 0 to 1",
        ),
        (
            BOTH.format("np.zeros(2)", "np.zeros(2)", ", labels=np.array([0, -1])"),
            "train: has the label -1, right are whole numbers from 0 up",
        ),
        (
            "self.classes = 'ab'\n" + BOTH.format("np.zeros(2)", "np.zeros(2)", ""),
            "classes are 'ab', not a list of names",
        ),
        (
            "self.train = Examples(np.zeros(2), np.zeros(2), labels=np.zeros(2, int))\n"
            "self.test = Examples(np.zeros(2), np.zeros(2))",
            "one of train and test has labels, the other has none",
        ),
        (
            MADE.format("samples, samples", "    fingerprint = None"),
            "train: has no 'fingerprint': batches that are made when they are asked for need a text that names what "
            "they hold, so that a run is not continued on other data",
        ),
        (MADE.format("samples, samples", "    __len__ = lambda self: -1"), "train: its length fails: ValueError: "),
        (MADE.format("samples[:0], samples", ""), "train: batch gives 0 inputs for 1 samples"),
        (MADE.format("samples", ""), "train: batch gives a ndarray, not (inputs, targets)"),
        (MADE.format("samples, None", ""), "train: targets are None, not an array of NumPy or torch"),
        (MADE.format("1 / 0, samples", ""), "train: batch fails: ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        opened(tmp_path, body)
    assert str(error.value).startswith(f"own.py:Own: {message}") and "\n" not in str(error.value)
    if not message.endswith(": "):
        assert str(error.value) == f"own.py:Own: {message}"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            "np.zeros((len(samples), 1 + (samples[0] > 2))), samples",
            "inputs of [2] float64 where others had [1] float64",
        ),
        ("samples if samples[0] < 3 else samples * 0.5, samples", "inputs of [] float64 where others had [] int64"),
        ("samples[samples < 3], samples[samples < 3]", "0 inputs for 1 samples"),
    ],
)
def test_a_later_batch_is_like_the_first(tmp_path: Path, returned: str, message: str) -> None:
    config = config_with(tmp_path, MADE.format(returned, ""))
    train, _ = make_loaders(load_dataset(config), config, 0, CPU, torch.float32)
    train.batch(np.array([1]), np.zeros(1, np.int64))
    with pytest.raises(DataError) as error:
        train.batch(np.array([4]), np.zeros(1, np.int64))
    assert str(error.value) == f"own.py:Own: train: batch gives {message}"


def test_paths_are_relative_to_the_job_and_in_no_digest(tmp_path: Path) -> None:
    text = (
        "from hpclbfl.config.sections import DataConfig\nfrom hpclbfl.config.sections.base import PathText\n"
        "class Set:\n    class Config(DataConfig):\n        source: PathText\n        second: PathText | None = None\n"
        "        lines: int = 3\n    def __init__(self, config): ...\n"
    )
    (tmp_path / "sets.py").write_text(text)
    (tmp_path / "job.yaml").write_text("data: {name: sets.py:Set, source: a.txt}\nmodel: {name: resnet8}\n")
    job = load_job(tmp_path / "job.yaml")
    assert (job.data.source, job.data.second) == (str(tmp_path / "a.txt"), None)  # type: ignore[attr-defined]
    digest = job.digest("f" * 64)
    assert load_job(tmp_path / "job.yaml", ["data.second=b.txt"]).digest("f" * 64) == digest
    assert load_job(tmp_path / "job.yaml", ["data.lines=4"]).digest("f" * 64) != digest
    assert load_job(tmp_path / "job.yaml").digest("e" * 64) != digest
