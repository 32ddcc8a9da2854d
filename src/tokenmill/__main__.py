"""``python -m tokenmill``: the command line, for environments whose scripts are not on the PATH."""

from tokenmill.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
