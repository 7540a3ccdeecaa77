"""A process that plays one run for a batch: a task in, an outcome out, both in files.

What it says on the way goes to standard output, a sentence per line.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from coloctl.chaos.run import batch


def main() -> None:
    """The outcome is in the second file; nothing is, when the run was broken off."""
    todo, done = map(Path, sys.argv[1:])
    batch.interruptible()
    try:
        outcome = batch.play(
            pickle.loads(todo.read_bytes()),
            lambda _name, _seed, sentence: print(sentence, flush=True),
        )
    except KeyboardInterrupt:
        sys.exit(130)
    done.write_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    main()
