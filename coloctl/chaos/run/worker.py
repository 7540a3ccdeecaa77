"""Make one run for a batch as a process of its own: a task in, a result out, both in files.

Started by `chaos.run.batch`. Its progress goes to standard output, a sentence per line.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from coloctl.chaos.run import batch
from coloctl.interrupts import interruptible


def main() -> None:
    """Make the run and write its result to the second file; there is none for one broken off."""
    todo, done = map(Path, sys.argv[1:])
    interruptible()
    try:
        outcome = batch.run_one(
            pickle.loads(todo.read_bytes()),
            lambda _name, _seed, sentence: print(sentence, flush=True),
        )
    except KeyboardInterrupt:
        sys.exit(130)
    done.write_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    main()
