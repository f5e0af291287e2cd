"""`python -m hpclbfl`, and the console script."""

import gc
import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is being loaded is no traceback, either."""
    from hpclbfl.core.signals import Interrupted, orderly_end

    try:
        with orderly_end():
            from hpclbfl.cli.app import main as run

            run()
    except Interrupted as interrupted:
        # All has been said and closed; Python's own end may crash over a module that was half loaded, such as torch.
        sys.stderr.flush()
        os._exit(128 + interrupted.signum)
    finally:
        # Python's last collections would walk through all of torch, for nearly a second.
        gc.freeze()


def _drop_working_folder() -> None:
    """Undo what `python -m` does: in the working folder a `random.py` would take the place of Python's."""
    try:
        folder = os.getcwd()  # noqa: PTH109, pathlib is not loaded yet, and would be looked for there
    except OSError:
        # It has been removed, and holds no modules.
        return
    if sys.path[0] == folder and folder not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        del sys.path[0]


if __name__ == "__main__":
    _drop_working_folder()
    main()
