"""Report what went wrong in a verb: one sentence and a hint, for people or as JSON.

Called by `cli.verbs.run_verb` and `cli.handed_over` for every error of a verb; `cli.acting` takes
`on_interrupt` for verbs whose act goes on without them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coloctl.errors import ColoctlError, PreconditionFailed, UsageError

if TYPE_CHECKING:
    import click

#: What a shell shows for a process that SIGINT ended.
INTERRUPTED = 130


class Interrupted(ColoctlError):
    """Ctrl-C was typed; the sentence states what becomes of the act under way."""

    code = "interrupted"
    exit_code = INTERRUPTED


@contextlib.contextmanager
def on_interrupt(sentence: str) -> Iterator[None]:
    """Turn Ctrl-C in the block into `Interrupted` with ``sentence``."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(sentence) from None


def wants_json(arguments: Sequence[str]) -> bool:
    """Return whether the command line asks for JSON, even where it is wrong otherwise."""
    own = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    pairs = itertools.pairwise(own)
    return any(word in ("-fjson", "--format=json") for word in own) or any(
        option in ("-f", "--format") and value == "json" for option, value in pairs
    )


def from_any(error: ColoctlError | click.ClickException | click.Abort | OSError) -> ColoctlError:
    """Convert an error of click or of the system to one of ours, which is returned as it is."""
    if isinstance(error, ColoctlError):
        return error
    if isinstance(error, OSError):
        return _about(error)
    import click  # a supervisor that a watcher starts does without

    if isinstance(error, click.Abort):
        return Interrupted("Interrupted; nothing was done.")
    # click lists choices below each other, and not every sentence of its has an end.
    sentence = " ".join(error.format_message().split()).rstrip(".")
    sentence += "" if sentence.endswith("?") else "."
    if not isinstance(error, click.UsageError):
        return ColoctlError(sentence)
    sentence = sentence.replace("No such command", "There is no verb", 1)
    path = error.ctx.command_path if error.ctx else "coloctl"
    return UsageError(sentence, hint=f"`{path} --help` shows how it is used")


def _about(error: OSError) -> ColoctlError:
    """Return the refusal of the system as a sentence that names the file."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return UsageError(
            "The folder in which this was typed is gone.",
            hint="change to one that exists, such as /, and give paths from there",
        )
    what = f"{error.filename} cannot be used" if error.filename else "The system refuses something"
    return PreconditionFailed(
        f"{what}: {error.strerror or error}.", hint="check the disk, the path and its permissions"
    )


def say(error: ColoctlError, *, as_json: bool) -> int:
    """Print ``error`` on standard error and return its exit code."""
    if isinstance(error, Interrupted) and sys.stderr.isatty():
        print(file=sys.stderr)  # after the terminal's own ^C
    for line in lines(error, as_json=as_json, colour=coloured()):
        print(line, file=sys.stderr)
    return error.exit_code


def lines(error: ColoctlError, *, as_json: bool, colour: bool) -> list[str]:
    """Format ``error`` for people, or as the document of ``-f json``."""
    if as_json:
        document = {"code": error.code, "message": error.message, "hint": error.hint}
        return [json.dumps({"error": document}, ensure_ascii=False)]
    if isinstance(error, Interrupted):
        return [error.message]
    said = [f"{_mark('error:', '1;31', colour)} {error.message}"]
    if error.hint:
        said.append(f"{_mark('hint:', '36', colour)} {error.hint}")
    return said


def coloured() -> bool:
    """Return whether standard error is a terminal on which colour is wanted."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _mark(word: str, code: str, colour: bool) -> str:
    return f"\033[{code}m{word}\033[0m" if colour else word
