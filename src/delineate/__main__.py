"""`python -m delineate` is the command line."""

from delineate.cli.app import main

if __name__ == "__main__":
    main()
