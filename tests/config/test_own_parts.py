"""Parts of the user's own, by name: what is found, what it is called, and what is wrong with it, in one line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.config.components import MODELS, OPTIMIZERS, PARTITIONS, SCHEDULES
from hpclbfl.config.job import JobConfig, load_job, parse_job
from hpclbfl.config.own_parts import Lookup
from hpclbfl.config.part_names import PartName, digits, parse_name
from hpclbfl.core.errors import ConfigError
from hpclbfl.data.partitions import partition
from hpclbfl.models import DataSpec, make_model
from hpclbfl.optim.optimizers import make_optimizer
from hpclbfl.optim.schedule import make_schedule
from hpclbfl.runs.parts import keep_parts
from tests.components import Marked

NET = """
from torch import nn
from hpclbfl.config.sections import ModelConfig

class Net(nn.Module):
    class Config(ModelConfig):
        width: int = 3
    def __init__(self, config, data):
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.width, data.num_classes)
    def forward(self, x):
        return self.layer(x)
"""
DATA = DataSpec((3, 8, 8), 4)


def job_of(folder: Path, **sections: Any) -> JobConfig:
    values: dict[str, Any] = {"data": {"name": "digits"}, "model": {"name": "resnet8"}, **sections}
    return load_job(written(folder, values))


def written(folder: Path, values: dict[str, Any]) -> Path:
    import yaml

    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def message_of(folder: Path, text: str, section: str = "model", name: str = "part.py:Net", **keys: Any) -> str:
    (folder / "part.py").write_text(text)
    key = {"partition": "kind", "schedule": "kind"}.get(section, "name")
    with pytest.raises(ConfigError) as refusal:
        job_of(folder, **{section: {key: name, **keys}})
    assert refusal.value.exit_code == 2
    said = str(refusal.value)
    assert "\n" not in said
    return said.removeprefix(f"{folder / 'job.yaml'}: ").replace(f"{folder}/", "")


def test_a_name_says_the_source_that_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NET)
    job = job_of(tmp_path, model={"name": "nets.py:Net", "width": 5})
    assert job.model.name == f"nets.py@{digits(NET.encode())}:Net"
    net = make_model(job.model, DATA)
    assert isinstance(net, torch.nn.Module) and net.layer.weight.shape == (4, 5)  # type: ignore[union-attr]
    # Where the file lies does not tell; what it holds does.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "nets.py").write_text(NET)
    moved = job_of(tmp_path / "other", model={"name": "./nets.py:Net", "width": 5})
    assert moved.digest("f") == job.digest("f")
    (tmp_path / "nets.py").write_text(f"{NET}\n")
    edited = job_of(tmp_path, model={"name": "nets.py:Net", "width": 5})
    assert edited.digest("f") != job.digest("f")


def test_files_of_one_name_do_not_get_into_each_others_way(tmp_path: Path) -> None:
    for folder, width in (("a", 2), ("b", 7)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(NET.replace("= 3", f"= {width}"))
    first, second = (job_of(tmp_path, model={"name": f"{folder}/nets.py:Net"}) for folder in "ab")
    shapes = [make_model(job.model, DATA).layer.weight.shape[1] for job in (first, second)]  # type: ignore[union-attr]
    assert shapes == [2, 7]
    for job in (first, second):
        keep_parts(tmp_path / "run", job)
    assert len(list((tmp_path / "run" / "parts").glob("*/nets.py"))) == 2


def test_overrides_are_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "nets.py").write_text(NET.replace("= 3", "= 9"))
    path = written(tmp_path, {"data": {"name": "digits"}, "model": {"name": "nets.py:Net"}})
    (tmp_path / "nets.py").write_text(NET)
    monkeypatch.chdir(tmp_path / "here")
    assert load_job(path).model.model_dump()["width"] == 3
    assert load_job(path, ["model.name=nets.py:Net"]).model.model_dump()["width"] == 9
    assert load_job(path, ["model={name: nets.py:Net}"]).model.model_dump()["width"] == 9
    assert load_job(path, ["model.width=4"]).model.model_dump()["width"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Net(:\n", "model.name: part.py:1: is not valid Python: invalid syntax"),
        ("x = 1\n\ndef f():\nreturn\n", "model.name: part.py:4: is not valid Python: expected an indented block"),
        ("a = 1\nb = a / 0\n", "model.name: part.py:2: cannot be imported: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('bye')\n", "model.name: part.py:2: cannot be imported: SystemExit: bye"),
        (
            "import helper_beside_it\n",
            "model.name: part.py:1: cannot be imported: ModuleNotFoundError: No module named 'helper_beside_it'; "
            "a part is one file: put what it needs into it, or install that as a package",
        ),
        ("from os import nothing\n", "model.name: part.py:1: cannot be imported: ImportError: cannot import name"),
        ("", "model.name: part.py: has no class 'Net': it has none"),
        ("class Met: pass\nclass Other: pass\n", "has no class 'Net': did you mean 'Met'? it has Met, Other"),
        ("Net = 3\n", "model.name: part.py: 'Net' is no class, but int"),
        ("def Net(config, data): pass\n", "model.name: part.py: 'Net' is no class, but function"),
        ("class Net: pass\n", "model.name: part.py: Net is no net: it has no forward and no parameters"),
        (
            NET.replace("class Config(ModelConfig)", "class Config"),
            "model.name: part.py: Net.Config is no config of this kind: derive it from "
            "hpclbfl.config.sections.model.ModelConfig",
        ),
        (
            NET.replace("ModelConfig", "OptimizerConfig"),
            "model.name: part.py: Net.Config is no config of this kind: derive it from "
            "hpclbfl.config.sections.model.ModelConfig",
        ),
        (NET.replace("config, data", "config"), "Net is no net: it is not made with (config, data), but with (config)"),
        ("\0", "is not valid Python: source code string cannot contain null bytes"),
    ],
)
def test_what_is_wrong_with_the_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    said = message_of(tmp_path, text)
    assert message in said, said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py:Net", "model.name: none.py: no such file; a path is relative to the job file, on the command line"),
        (".:Net", "model.name: '.:Net' names no part of your own: write file.py:Class, or package.module:Class"),
        ("part.py:", "names no part of your own"),
        ("part.py:Net:", "names no part of your own"),
        (":Net", "names no part of your own"),
        ("part.py:Wide-Net", "names no part of your own"),
        ("fol\nder/part.py:Net", "names no part of your own"),
        ("part:Net", "model.name: part cannot be imported: ModuleNotFoundError: No module named 'part'; give an"),
        ("no_such.package:Net", "model.name: no_such.package cannot be imported: ModuleNotFoundError: No module named"),
        ("sys:Net", "model.name: sys has no source file; give a module that has one"),
        ("folder.py:Net", "model.name: folder.py: is not a regular file"),
        ("pipe.py:Net", "model.name: pipe.py: is not a regular file"),
        ("part.py@0123456789ab:Net", "/parts/0123456789ab/part.py: no such file; bring back the copy"),
        ("../part.py@0123456789ab:Net", "a copy's name has no folders"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    said = message_of(tmp_path, NET, name=name)
    assert message in said or message in said.replace("parts/", "/parts/"), said


def test_a_file_that_is_not_text_or_too_large(tmp_path: Path) -> None:
    (tmp_path / "big.py").write_bytes(b"#" * 1_000_001)
    assert "big.py: is larger than 1,000,000 bytes" in message_of(tmp_path, NET, name="big.py:Net")
    (tmp_path / "raw.py").write_bytes(b"x = '\xff'\n")
    assert "raw.py:1: is not valid Python: (unicode error)" in message_of(tmp_path, NET, name="raw.py:Net")


def test_further_keys_are_checked_against_its_own_config(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(NET)
    said = message_of(tmp_path, NET, widht=4)
    assert said == "unknown key 'model.widht': did you mean 'width'? valid under 'model': name, width"
    assert "model.width: " in message_of(tmp_path, NET, width="wide")
    # A key of the package's nets is none of its own, also with the default.
    assert "unknown key 'model.stem'" in message_of(tmp_path, NET, stem="imagenet")
    bare = NET.replace("    class Config(ModelConfig):\n        width: int = 3\n", "").replace("config.width", "3")
    assert message_of(tmp_path, bare, width=4) == "unknown key 'model.width': valid under 'model': name"


def test_a_config_that_fails_or_changes_is_one_line(tmp_path: Path) -> None:
    head = "from pydantic import field_validator\n"
    raising = "        @field_validator('width')\n        def f(cls, v):\n            return 1 / 0\n"
    growing = raising.replace("1 / 0", "v + 1")
    text = head + NET.replace("= 3\n", "= 3\n{}")
    assert message_of(tmp_path, text.format(raising), width=2) == (
        "model: Net.Config fails: ZeroDivisionError: division by zero"
    )
    assert message_of(tmp_path, text.format(growing), width=2).startswith(
        "model: Net.Config gives other values when it is read again"
    )


def test_a_class_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NET)
    net = NET.replace("ModelConfig", "OptimizerConfig")
    assert message_of(tmp_path, net, "optimizer") == "optimizer.name: part.py: Net is no optimizer: it has no step"
    assert "Net.Config is no config of this kind" in message_of(tmp_path, NET, "schedule")
    bare = NET.replace("    class Config(ModelConfig):\n        width: int = 3\n", "")
    assert "Net is no schedule: it is not made with (config), but with (config, data)" in (
        message_of(tmp_path, bare, "schedule")
    )
    assert "Net is no partition: it has no __call__" in message_of(tmp_path, "class Net:\n    pass\n", "partition")


def test_an_error_in_making_it_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(NET.replace("self.config = config", "raise KeyError('weights')"))
    job = job_of(tmp_path, model={"name": "part.py:Net"})
    with pytest.raises(ConfigError) as refusal:
        make_model(job.model, DATA)
    assert str(refusal.value) == f"{tmp_path / 'part.py'}:10: Net cannot be made: KeyError: 'weights'"
    assert isinstance(refusal.value.__cause__, KeyError)


def test_a_net_without_parameters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(NET.replace("nn.Linear(config.width, data.num_classes)", "nn.ReLU()"))
    with pytest.raises(ConfigError, match=r"^model.name: part.py:Net has no parameters to train$"):
        make_model(job_of(tmp_path, model={"name": "part.py:Net"}).model, DATA)


PARTITION = """
import numpy as np
class Cut:
    def __init__(self, config):
        pass
    def __call__(self, labels, num_clients, num_classes, generator):
        return {}
"""


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "gives NoneType, not an array for each client"),
        ("[np.arange(6)]", "gives 1 shards for 2 clients"),
        ("[np.arange(3), np.arange(3.0)]", "client 1's shard is no list of whole numbers"),
        ("[np.arange(3), np.arange(2, 6)]", "does not give every sample to one client: sample 2 is in it twice"),
        ("[np.arange(3), np.arange(4, 6)]", "does not give every sample to one client: sample 3 is in no shard"),
        (
            "[np.arange(3), np.arange(3, 7)]",
            "does not give every sample to one client: sample 6 is none of the 6, 0 the first",
        ),
        (
            "[np.arange(-1, 3), np.arange(3, 6)]",
            "does not give every sample to one client: sample -1 is none of the 6, 0 the first",
        ),
    ],
)
def test_a_partition_gives_every_sample_to_one_client(tmp_path: Path, returned: str, message: str) -> None:
    (tmp_path / "cut.py").write_text(PARTITION.format(returned))
    config = job_of(tmp_path, partition={"kind": "cut.py:Cut"}).partition
    with pytest.raises(ConfigError, match=re.escape(f"partition cut.py:Cut: {message}") + "$"):
        partition(config, Marked(np.zeros(6, np.int64)), 2, 1, 0)


def test_a_partition_may_give_lists_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "cut.py").write_text(
        PARTITION.format("([5, 0, 1], []) if num_clients == 1 else [[5, 0, 1, 4, 3, 2], []]")
    )
    config = job_of(tmp_path, partition={"kind": "cut.py:Cut"}).partition
    shards = partition(config, Marked(np.zeros(6, np.int64)), 2, 1, 0)
    assert [shard.tolist() for shard in shards] == [[0, 1, 2, 3, 4, 5], []]
    assert all(shard.dtype == np.int64 for shard in shards)


def test_an_optimizer_has_all_of_its_state_from_the_start(tmp_path: Path) -> None:
    text = """
import torch
class Own(torch.optim.Optimizer):
    def __init__(self, config, groups):
        super().__init__(groups, {"lr": config.lr})
    def step(self, closure=None):
        pass
"""
    (tmp_path / "opt.py").write_text(text)
    parameters = [torch.nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(ConfigError, match=r"^optimizer.name: Own has no method reset_state, which resets its state"):
        make_optimizer(job_of(tmp_path, optimizer={"name": "opt.py:Own"}).optimizer, parameters)
    reset = (
        "    def reset_state(self):\n        self.state[self.param_groups[0]['params'][0]] = {'sum': torch.zeros(2)}\n"
    )
    (tmp_path / "opt.py").write_text(text + reset)
    made = make_optimizer(job_of(tmp_path, optimizer={"name": "opt.py:Own", "lr": 0.5}).optimizer, parameters)
    assert made.state[parameters[0]]["sum"].tolist() == [0, 0] and made.param_groups[0]["lr"] == 0.5
    derived = "import torch\nclass Own(torch.optim.SGD):\n    def __init__(self, config, groups):\n"
    (tmp_path / "opt.py").write_text(f"{derived}        super().__init__(groups, lr=config.lr, momentum=0.5)\n")
    made = make_optimizer(job_of(tmp_path, optimizer={"name": "opt.py:Own"}).optimizer, parameters)
    assert made.state[parameters[0]]["momentum_buffer"].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("factor", ["float('nan')", "-1.0", "None", "float('inf')"])
def test_a_schedule_gives_factors(tmp_path: Path, factor: str) -> None:
    text = (
        "class Own:\n    def __init__(self, config):\n        pass\n    def __call__(self, epoch):\n        return {}\n"
    )
    (tmp_path / "own.py").write_text(text.format("epoch / 2"))
    schedule = make_schedule(job_of(tmp_path, schedule={"kind": "own.py:Own"}), 10, 100)
    assert schedule.lr(3.0) == pytest.approx(0.15)
    (tmp_path / "own.py").write_text(text.format(factor))
    with pytest.raises(Exception, match=r"^schedule: gives .* at epoch 3, not a factor of 0 or more$"):
        make_schedule(job_of(tmp_path, schedule={"kind": "own.py:Own"}), 10, 100).lr(3.0)


def test_copies_are_used_by_their_checksum_alone(tmp_path: Path) -> None:
    """In a process of its own: this one knows the files that it has read."""
    (tmp_path / "nets.py").write_text(f"{NET}# {tmp_path}\n")
    job = job_of(tmp_path, model={"name": "nets.py:Net"})
    keep_parts(tmp_path / "run", job)
    (copy,) = (tmp_path / "run" / "parts").glob("*/nets.py")
    assert copy.read_text() == (tmp_path / "nets.py").read_text()
    copy.write_text("damaged")
    keep_parts(tmp_path / "run", job)
    assert copy.read_text() == (tmp_path / "nets.py").read_text()


def test_a_run_folder_names_nothing_outside_of_it(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NET)
    values = {"data": {"name": "digits"}, "model": {"name": str(tmp_path / "nets.py:Net")}}
    for name in (str(tmp_path / "nets.py:Net"), "os.path:join"):
        values["model"] = {"name": name}
        with pytest.raises(ConfigError, match="lies outside the run folder: the names in it have a checksum"):
            parse_job(values, "config.yaml", Lookup((tmp_path,), copies_only=True))


def test_the_printed_job_can_be_read_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets.py").write_text(NET)
    job = job_of(tmp_path, model={"name": "nets.py:Net", "width": 5})
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "printed.yaml").write_text(job.to_printed())
    assert f"name: {tmp_path}/nets.py:Net" in job.to_printed()
    monkeypatch.chdir("/")
    assert load_job(tmp_path / "else" / "printed.yaml") == job


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nets.py:Net", PartName("nets.py", "Net")),
        ("a b/n:ets.py:Net", PartName("a b/n:ets.py", "Net")),
        ("nets.py@0123456789ab:Net", PartName("nets.py", "Net", "0123456789ab")),
        ("nets.py@0123:Net", None),
        ("torch.nn:Linear", PartName("torch.nn", "Linear")),
        ("torch.nn@0123456789ab:Linear", PartName("torch.nn", "Linear", "0123456789ab")),
        ("resnet18", None),
        (3, None),
        ("a/b:Net", None),
    ],
)
def test_names(name: Any, expected: PartName | None) -> None:
    found = parse_name(name)
    assert found == expected
    assert found is None or str(found) == name


def test_every_kind_says_what_a_part_of_ones_own_is() -> None:
    for registry in (MODELS, PARTITIONS, OPTIMIZERS, SCHEDULES):
        assert registry.interface is not None and registry.interface.made_with[0] == "config"
