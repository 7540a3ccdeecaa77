"""The program: as little as possible happens before Ctrl-C is understood."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the verb on the command line and exits with its code."""
    try:
        from coloctl.cli.verbs import run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
