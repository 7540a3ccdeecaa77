"""Programs of ours in front of the pair's QEMU, for as long as a run lasts."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from coloctl.chaos.faults.fault import Staging


@contextlib.contextmanager
def wrapped(staging: Staging, name: str, qemu: str, tool: str) -> Iterator[None]:
    """The pair's QEMU is a shell script that ends with ``qemu``, and the ``qemu-img`` beside it one
    that ends with ``tool``; ``{program}`` in both stands for what was there before.

    The scripts name what they wrap, so what coloctl remembers of a binary goes when that changes.
    Wrappings may be laid around each other.
    """
    before = staging.qemu
    folder = staging.home / f"wrapped-{name}"
    folder.mkdir()
    staging.qemu = _script(folder / before.name, qemu, before.absolute())
    if (image_tool := before.with_name("qemu-img")).exists():
        _script(folder / image_tool.name, tool, image_tool.absolute())
    try:
        yield
    finally:
        staging.qemu = before
        shutil.rmtree(folder, ignore_errors=True)


def _script(path: Path, text: str, program: Path) -> Path:
    path.write_text(f"#!/bin/sh\n{text.format(program=shlex.quote(str(program)))}\n")
    path.chmod(0o755)
    return path
