"""`python -m delineate` is the command line."""

from delineate.cli import main

main()
