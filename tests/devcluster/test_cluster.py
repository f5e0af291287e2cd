"""The development cluster: the folder that it keeps to."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpclbfl.core.errors import EnvironmentFault
from tests.devcluster.cluster import DevCluster
from tests.devcluster.conf import Node, slurm_conf


def test_the_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(EnvironmentFault, match="not the folder of such a cluster"):
        DevCluster(tmp_path).start()
    assert (tmp_path / "thesis.tex").exists()


def test_its_configuration_keeps_to_its_folder() -> None:
    folder = Path("/tmp/c")
    nodes = [Node("n1", "fast", 7001), Node("n2", "slow", 7002)]
    text = slurm_conf(folder, "host", "root", nodes, 7000, 8, 1000, 11)
    paths = [word for line in text.splitlines() for word in line.split("=")[1:] if word.startswith("/")]
    assert paths and all(path.startswith("/tmp/c/") for path in paths)
    assert "TmpFS=/tmp/c/%n/tmp" in text and "MaxArraySize=11" in text
    assert "NodeName=n2 NodeHostname=host NodeAddr=127.0.0.1 Port=7002 CPUs=8 RealMemory=1000 Feature=slow" in text
