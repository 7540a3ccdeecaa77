"""Start the program: as little as possible happens before Ctrl-C is handled.

Calls `cli.streams.install` first, so that no verb has to handle a full disk after a redirection,
then `cli.verbs.run_verb`, or `cli.handed_over` for a supervisor that a watcher starts.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the verb on the command line and exit with its code."""
    try:
        from coloctl.cli import streams

        streams.install()
        try:
            if sys.argv[1:2] == ["run"] and "--control-fd" in sys.argv:
                from coloctl.cli.handed_over import supervise

                sys.exit(supervise(sys.argv[1:]))
            from coloctl.cli.verbs import run_verb

            sys.exit(run_verb(sys.argv[1:]))
        finally:
            streams.settle()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
