"""`python -m tests.devcluster up|down`: start and stop a Slurm of two nodes on this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hpclbfl.core.diagnostics import Diagnostics, on_terminal
from hpclbfl.core.errors import HpclbflError
from hpclbfl.core.text import say, say_error
from tests.devcluster.cluster import DevCluster, default_folder
from tests.devcluster.packages import install

logger = Diagnostics(__name__)


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.devcluster", description=__doc__)
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--folder", type=Path, default=default_folder(), help="folder of the cluster [%(default)s]")
    arguments = parser.parse_args()
    cluster = DevCluster(arguments.folder)
    try:
        with on_terminal():
            if arguments.command == "down":
                cluster.stop()
                logger.info("the development Slurm is stopped")
                return 0
            install(logger.info)
            cluster.start()
            logger.info(f"a Slurm of two nodes (n1: fast, n2: slow) runs in {cluster.folder}; to use it:")
    except HpclbflError as error:
        say_error(error)
        return error.exit_code
    say(f"export SLURM_CONF={cluster.conf}", sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
