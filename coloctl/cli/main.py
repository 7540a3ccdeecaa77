"""Start the program: as little as possible happens before Ctrl-C is handled.

Calls `cli.streams.install` first, so that no verb has to handle a full disk after a redirection,
then `cli.verbs.run_verb`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the verb on the command line and exit with its code."""
    try:
        from coloctl.cli import streams

        streams.install()
        try:
            from coloctl.cli.verbs import run_verb

            sys.exit(run_verb(sys.argv[1:]))
        finally:
            streams.settle()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
