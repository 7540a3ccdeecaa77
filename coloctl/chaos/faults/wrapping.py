"""Put programs in front of the pair's QEMU, for as long as a run lasts.

Called by `chaos.faults.monitors` and `chaos.faults.sitescript` when they prepare a pair.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from coloctl.chaos.faults.fault import Setup


@contextlib.contextmanager
def wrapped(setup: Setup, name: str, qemu: str) -> Iterator[None]:
    """Replace the pair's QEMU by a shell script that ends with the text ``qemu``.

    ``{program}`` in it stands for the program that was there before; the ``qemu-img`` beside it
    becomes a script that runs the other. The scripts name the programs that they wrap, so results
    that coloctl keeps of a binary are dropped when that changes. Wrappings may be nested.
    """
    before = setup.qemu
    folder = setup.home / f"wrapped-{name}"
    folder.mkdir()
    setup.qemu = _script(folder / before.name, qemu, before.absolute())
    if (image_tool := before.with_name("qemu-img")).exists():
        _script(folder / image_tool.name, 'exec {program} "$@"', image_tool.absolute())
    try:
        yield
    finally:
        setup.qemu = before
        shutil.rmtree(folder, ignore_errors=True)


def _script(path: Path, text: str, program: Path) -> Path:
    path.write_text(f"#!/bin/sh\n{text.format(program=shlex.quote(str(program)))}\n")
    path.chmod(0o755)
    return path
