"""Find the fresh-code plugin that a QEMU loads under TCG, and decide whether to trust it.

Under TCG a secondary may run code that it translated before a checkpoint replaced it; the plugin
(files/fresh-code.c) prevents that. Called by `colo.plugin` for every QEMU of a pair;
`check.freshcode` builds the file. Its name comes from `coloctl.probe_cache`.

Invariant: a plugin that is returned lies where no other user can write, was built from the source
of this coloctl, and was tried in this very binary.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path

from coloctl import paths, probe_cache
from coloctl.machine.option import keyval

#: Found again in the command line of a QEMU that runs.
OPTION = "-plugin"

#: What is so without it.
WITHOUT = "the secondary may run code that its memory does not hold any more"


def source() -> str:
    """Return the plugin's C source."""
    return resources.files("coloctl.machine").joinpath("files/fresh-code.c").read_text("utf-8")


def place(binary: Path) -> Path:
    """Name the file in which the plugin for ``binary`` lies, or will lie.

    Another source and another QEMU, also behind the same wrapper, have another name. Raises
    `PreconditionFailed` for a cache folder that others can write.
    """
    return place_in(paths.cache_dir(), probe_cache.identity(binary))


def place_in(cache: Path, fingerprint: Iterable[str]) -> Path:
    """Name that file in the cache folder of any machine, by its fingerprint of the binary."""
    name = probe_cache.digest(["fresh-code", source(), *fingerprint])
    return cache / "plugin" / f"fresh-code-{name}.so"


def find(binary: Path) -> Path | None:
    """Return the plugin that ``binary`` may load; None where none was built or it is not trusted.

    It is looked up again for every QEMU: the cache may have been emptied since the last one.
    """
    file = place(binary)
    return None if distrust(file) else file


def distrust(file: Path) -> str:
    """Explain in a sentence why ``file`` is not loaded; return "" when it can be trusted.

    The cache folder around it was checked by `paths.cache_dir`.
    """
    for path, is_kind, kind in (
        (file.parent, stat.S_ISDIR, "folder"),
        (file, stat.S_ISREG, "file"),
    ):
        try:
            status = path.lstat()
        except OSError as error:
            return f"{path} is not there: {error.strerror}."
        if not is_kind(status.st_mode):
            return f"{path} is not a {kind}."
        if status.st_uid not in (0, os.geteuid()):
            return f"{path} belongs to user id {status.st_uid}."
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):04o})."
    return ""


def hint(binary: Path) -> str:
    """Return what an operator types where the plugin is missing."""
    return f"`coloctl lab plugin --qemu {binary}` builds it for the next secondary"


def warning(binary: Path) -> str:
    """Return the sentences for a pair whose secondary runs ``binary`` under TCG without it."""
    return (
        f"Protection is for demos here: under TCG without the fresh-code plugin {WITHOUT}. "
        f"{hint(binary)}; KVM needs none."
    )


def arguments(plugin: Path | None, **words: bool) -> tuple[str, ...]:
    """Return the words that load ``plugin``.

    ``words`` are for trials: with ``log`` it writes a line to standard error each time it has
    looked for stale code, with ``always`` it looks at every start, also where COLO is not at work.
    """
    if plugin is None:
        return ()
    return (OPTION, keyval(file=str(plugin), **words))


def in_force(argv: Sequence[str]) -> bool | None:
    """Determine from the command line of a QEMU that runs whether its code stays fresh.

    None where it translates no code (KVM), or its command line is not known.
    """
    words = list(argv)
    if "-accel" not in words or words[words.index("-accel") + 1] != "tcg":
        return None
    return any(word == OPTION and "fresh-code-" in value for word, value in pairwise(words))
