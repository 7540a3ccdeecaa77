"""Every verb in surroundings that a bad day has: one process per surrounding, a fork per verb.

``python -m support.surroundings NAME FOLDER`` reads a JSON list of command lines from the file
``FOLDER/verbs`` and writes to ``FOLDER/said`` what became of each: exit code and both outputs.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import pkgutil
import pty
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _to(fd: int, path: str) -> None:
    new = os.open(path, os.O_WRONLY)
    os.dup2(new, fd)
    os.close(new)


def _closed(*fds: int) -> None:
    for fd in fds:
        os.close(fd)
        setattr(sys, ("stdin", "stdout", "stderr")[fd], None)  # as Python does it


def _unread(fd: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, fd)
    os.close(writer)


def _gone(folder: Path) -> None:
    (folder / "cwd").mkdir()
    os.chdir(folder / "cwd")
    (folder / "cwd").rmdir()


def _terminal(fds: tuple[int, ...]) -> None:
    """A terminal without a size, whose other end takes what comes."""
    _, slave = pty.openpty()
    for fd in fds:
        os.dup2(slave, fd)


Change = Callable[[Path], None]
#: What happens in a child before the verb, by the words that a surrounding's name consists of.
CHANGES: dict[str, Change] = {
    "stdout full": lambda _: _to(1, "/dev/full"),
    "stderr full": lambda _: _to(2, "/dev/full"),
    "stdin closed": lambda _: _closed(0),
    "stdout closed": lambda _: _closed(1),
    "stderr closed": lambda _: _closed(2),
    "stdout unread": lambda _: _unread(1),
    "stderr unread": lambda _: _unread(2),
    "folder gone": _gone,
    "terminal without size": lambda _: _terminal((0, 1)),
}
#: Those that Python reads when it starts.
ENVIRONMENT: dict[str, dict[str, str]] = {
    "ascii": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "dumb": {"TERM": "dumb"},
    "no columns": {"COLUMNS": "0", "LINES": "0"},
    "one column": {"COLUMNS": "1", "LINES": "1"},
}
SURROUNDINGS = (
    "ordinary",
    "stdout full, dumb",
    "stdout full, stderr full",
    "stdout closed, ascii",
    "stdin closed, stdout closed, stderr closed",
    "stdout unread, no columns",
    "stderr full, latin-1",
    "stderr unread, stdin closed",
    "ascii, one column",
    "latin-1, folder gone, dumb",
    "terminal without size",
)


def play(name: str, folder: Path) -> None:
    """Each verb has ended; what it said and its code are in the folder."""
    from coloctl import cli, control, supervisor
    from coloctl.cli import main

    for package in (cli, control, supervisor):  # once for all children
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    gc.freeze()
    said: list[dict[str, Any]] = []
    for number, typed in enumerate(json.loads((folder / "verbs").read_text())):
        out, err = (folder / f"{number}.{kind}" for kind in ("out", "err"))
        if (child := os.fork()) == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for fd, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), fd)
            for change in name.split(", "):
                CHANGES.get(change, lambda _: None)(folder)
            sys.argv = ["coloctl", *typed]
            main.main()
            raise AssertionError("the program has no end")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        alphabet = "latin-1" if "latin-1" in name else "utf-8"
        words = {"out": out.read_text(alphabet), "err": err.read_text(alphabet)}
        said.append({"code": code, **words})
    (folder / "said").write_text(json.dumps(said))


if __name__ == "__main__":
    assert isinstance(sys.stdout, io.TextIOWrapper)
    play(sys.argv[1], Path(sys.argv[2]))
