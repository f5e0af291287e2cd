"""`python -m hpclbfl.slurm.devcluster up|down`: starts and stops a Slurm of two nodes on this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hpclbfl.core.errors import HpclbflError
from hpclbfl.core.text import say
from hpclbfl.slurm.devcluster.cluster import DevCluster, default_folder
from hpclbfl.slurm.devcluster.packages import install


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m hpclbfl.slurm.devcluster", description=__doc__)
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--folder", type=Path, default=default_folder(), help="of the cluster [%(default)s]")
    arguments = parser.parse_args()
    cluster = DevCluster(arguments.folder)
    try:
        if arguments.command == "down":
            cluster.stop()
            _say("the throw-away Slurm is stopped")
            return 0
        install(_say)
        cluster.start()
    except HpclbflError as error:
        _say(f"error: {error}")
        return error.exit_code
    _say(f"a Slurm of two nodes (n1: fast, n2: slow) runs in {cluster.folder}; to talk to it:")
    say(f"export SLURM_CONF={cluster.conf}", sys.stdout)
    return 0


def _say(line: str) -> None:
    say(f"hpclbfl: {line}")


if __name__ == "__main__":
    sys.exit(main())
