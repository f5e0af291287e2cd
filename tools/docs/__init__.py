"""The parts of docs/ that are generated from the source, and the checks of links; `python -m tools.docs`."""
