"""`python -m hpclbfl`."""

from hpclbfl.cli import main

main()
