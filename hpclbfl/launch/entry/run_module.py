"""Runs a module without the working folder on the path: `python run_module.py -m MODULE [ARGUMENT]...`.

With `python -m MODULE` Python looks for every module in the working folder first, so a `random.py` there replaces the
standard one. Python 3.10 has no option against it. See `hpclbfl.launch.children.module_command`.
"""

import sys

if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    # The folder of this script, added by Python.
    del sys.path[0]

import os


def drop_working_folder() -> None:
    """Remove the working folder from the path where an empty entry of PYTHONPATH has added it."""
    given = os.environ.get("PYTHONPATH", "")
    entries = given.split(os.pathsep)
    try:
        folder = os.getcwd()  # noqa: PTH109, pathlib would still be looked for there
    except OSError:
        # It has been removed.
        return
    # `PYTHONPATH=$PYTHONPATH:/my/modules` has one if the variable was not set. A folder given by name stays.
    if given and "" in entries and folder not in entries:
        sys.path[:] = [entry for entry in sys.path if entry not in ("", folder)]


def load_package() -> None:
    """Import the package of this file, even if another one, or none, is on the path."""
    import importlib.util
    from pathlib import Path

    source = Path(__file__).resolve().parents[2] / "__init__.py"
    places = [str(source.parent)]
    spec = importlib.util.spec_from_file_location("hpclbfl", source, submodule_search_locations=places)
    if spec is None or spec.loader is None:
        raise ImportError(f"{source} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules["hpclbfl"] = module
    spec.loader.exec_module(module)


def main() -> None:
    """Run the module named on the command line, as `python -m` does."""
    drop_working_folder()
    load_package()
    import runpy

    from hpclbfl.launch.parent import end_with_parent

    end_with_parent()
    # submitit appends `-u -m MODULE` to what it takes for the interpreter.
    words = sys.argv[2:] if sys.argv[1:2] == ["-u"] else sys.argv[1:]
    if len(words) < 2 or words[0] != "-m":
        sys.exit("usage: run_module.py -m MODULE [ARGUMENT]...")
    sys.argv[1:] = words[2:]
    runpy.run_module(words[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
