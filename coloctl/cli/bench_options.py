"""Define what all benches share: their options, the setting they make, where a document goes.

Called by `cli.verbs.bench`; `cli.verbs.chaos` uses its option for QEMU. Makes a `chaos.run.testbed`
setting and enters the user namespace of `lab.rootless`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Group, RenderableType

from coloctl import pairfile, wholefile
from coloctl.chaos.run.testbed import Testbed
from coloctl.cli.options import typed_verb
from coloctl.cli.run_parts import engage, require_libraries
from coloctl.cli.views import plain as documents
from coloctl.cli.views import render
from coloctl.errors import UsageError
from coloctl.lab import rootless
from coloctl.lab.machines import require_root

#: A bench's pair and its lab are called this, unless --name chooses another.
NAME = "bench"

F = TypeVar("F", bound=Callable[..., Any])

spec_argument = click.argument(
    "spec_path",
    metavar="[SPEC]",
    required=False,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
qemu_option = click.option(
    "--qemu", metavar="PATH_OR_NAME", help="This QEMU instead of one that is found."
)
name_option = click.option(
    "--name", default=NAME, show_default=True, help="What the bench's pair and lab are called."
)
clients_option = click.option(
    "--clients", type=click.IntRange(1, 64), default=4, show_default=True, help="How many append."
)
file_option = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write the JSON document there as well.",
)


def delay_option(default_ms: int) -> Callable[[F], F]:
    """Build the option for the checkpoint period, with its default in milliseconds."""
    return click.option(
        "--delay-ms",
        type=click.IntRange(50, 60_000),
        metavar="MS",
        help=f"Checkpoint period (default {default_ms}, or what SPEC says).",
    )


def setting_of(options: Mapping[str, Any], *, delay_ms: int) -> Testbed:
    """Build the setting of a bench; the process is root of a lab from here on.

    An option on the command line wins against the SPEC.
    """
    require_libraries("the bench", "clients")
    lent: dict[str, Any] = {}
    qemu, accel = options["qemu"], "auto"
    if options["spec_path"] is not None:
        pair = pairfile.load(options["spec_path"].absolute())
        qemu = qemu or (str(pair.guest.qemu) if pair.guest.qemu else None)
        accel, delay_ms = pair.guest.accel, pair.checkpoint.delay_ms
        lent = {
            "channel": str(pair.replication.channel),
            "memory": f"{pair.guest.memory_mib}MiB",
            "detection": {
                "heartbeat_ms": pair.detection.heartbeat_ms,
                "suspect_after_ms": pair.detection.suspect_after_ms,
            },
        }
    parts = engage(qemu)
    if options.get("on_machines"):
        require_root(f"{typed_verb()} --machines")
        lent["on"] = "machines"
    else:
        rootless.enter(lab=options["name"])
    return Testbed(
        qemu=parts.qemu,
        accel=parts.accel if accel == "auto" else accel,
        guest=parts.guest,
        name=options["name"],
        delay_ms=options["delay_ms"] or delay_ms,
        **lent,
    )


def delays(text: str) -> tuple[int, ...]:
    """Parse a list of checkpoint periods; raises `UsageError` for one that is out of range."""
    try:
        delays = tuple(int(word) for word in text.split(","))
    except ValueError:
        delays = ()
    if not delays or not all(50 <= delay <= 60_000 for delay in delays):
        raise UsageError(
            f"'{text}' is not a list of checkpoint periods.",
            hint="write milliseconds from 50 to 60000 with commas between, such as 200,1000",
        )
    return delays


def amounts(text: str) -> tuple[int, ...]:
    """Parse a list of MiB that a checkpoint finds changed; raises `UsageError` for another one."""
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(1 <= mib <= 64 for mib in found) or len(set(found)) < len(found):
        raise UsageError(
            f"'{text}' is not a list of amounts of memory.",
            hint="write different numbers of MiB from 1 to 64 with commas between, such as 1,16",
        )
    return found


def save(path: Path | None, document: Mapping[str, Any]) -> None:
    """Write the document so far to the file, as a whole; nothing without a path.

    Raises `UsageError` when it cannot be written.
    """
    if path is None:
        return
    try:
        wholefile.replace(path, (json.dumps(document, indent=2) + "\n").encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None


def show(document: Mapping[str, Any], form: str, drawn: RenderableType) -> None:
    """Print the document as JSON, or as it was drawn."""
    if form == "json":
        documents.print_json(document)
    else:
        render.console().print(Group("", drawn))
