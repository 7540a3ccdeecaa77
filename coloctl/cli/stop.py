"""The verb `stop`."""

from __future__ import annotations

import asyncio
import os
import select
from typing import Any

import click

from coloctl import paths
from coloctl.cli import complaint, documents, reach
from coloctl.cli.options import (
    Duration,
    WaitingCommand,
    confirm,
    dry_run_option,
    format_option,
    pair_argument,
    yes_option,
)
from coloctl.cli.progress import drawing
from coloctl.control.client import ControlClient
from coloctl.control.watcher import watcher_of
from coloctl.errors import DeadlineMissed, NoSuchPair, Unreachable

#: How long a guest may take to shut down when nothing is said, seconds.
SHUTDOWN_S = 60.0
#: What stopping takes on top of the guest's own time: fencing, killing, sweeping, seconds.
MARGIN_S = 60.0


@click.command(cls=WaitingCommand)
@pair_argument
@click.option("--force", is_flag=True, help="End QEMU without asking the guest to shut down.")
@click.option(
    "--wait",
    type=Duration(),
    metavar="[=T]",
    default=SHUTDOWN_S,
    help=f"How long the guest may take to shut down (default {SHUTDOWN_S:.0f} s) before it is "
    "ended.",
)
@dry_run_option
@yes_option
@format_option("pretty", "json")
def stop(*, pair: str, force: bool, wait: float, dry_run: bool, yes: bool, form: str) -> None:
    """Shut the guest of PAIR down and leave nothing behind.

    With --force the guest loses what it had not written to its disk. Where the supervisor is gone,
    --force ends what it left running and clears the pair's folder.
    """
    try:
        client = reach.connect(pair)
    except Unreachable:
        _stop_leftovers(pair, force=force, dry_run=dry_run, yes=yes, form=form)
        return
    except NoSuchPair:
        if not paths.pair_dir(pair).is_dir():
            raise
        _stop_leftovers(pair, force=force, dry_run=dry_run, yes=yes, form=form)
        return
    with client:
        if dry_run:
            steps = client.execute("query-plan", reach.TIMEOUT_S, verb="stop")
            documents.show_dialogue(pair, "stop", steps, form)
            return
        confirm(pair, _question(pair, force), yes=yes)
        _tell(pair, _stop_supervised(client, pair, force, wait, form), form)


def _question(pair: str, force: bool) -> str:
    if force:
        return f"This ends the guest of {pair} at once, as if its power were cut."
    return f"This shuts the guest of {pair} down."


def _stop_supervised(
    client: ControlClient, pair: str, force: bool, wait_s: float, form: str
) -> str:
    """How the guest ended; its supervisor is gone, and so is its folder."""
    pid = client.execute("query-pair", reach.TIMEOUT_S)["supervisor_pid"]
    watcher = watcher_of(pid)
    held = [fd for fd in map(_hold, filter(None, (pid, watcher))) if fd is not None]
    goes_on = f"Interrupted; the supervisor of {pair} goes on with stopping it."
    try:
        with complaint.on_interrupt(goes_on):
            with drawing(as_json=form == "json") as on_event:
                client.on_event = on_event
                how = client.execute(
                    "pair-stop", wait_s + MARGIN_S, force=force or None, timeout_s=wait_s
                )["how"]
            ended = all(_ended(fd, MARGIN_S) for fd in held)
        if not ended:
            raise DeadlineMissed(
                f"The supervisor of {pair} (process {pid}) did not end within {MARGIN_S:g} s.",
                hint=f"the guest is gone; `kill {pid}` ends the supervisor",
            )
    finally:
        for fd in held:
            os.close(fd)
    return str(how)


def _hold(pid: int) -> int | None:
    """A pidfd; None when the process is gone, or belongs to another user."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _ended(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _stop_leftovers(pair: str, *, force: bool, dry_run: bool, yes: bool, form: str) -> None:
    """The supervisor is gone: what it left is ended and cleared, when that was asked for."""
    from coloctl.control.newborn import end_stale
    from coloctl.supervisor import leftovers

    folder = paths.pair_dir(pair)
    living = leftovers.living(folder)
    if dry_run:
        steps: list[dict[str, Any]] = [
            {"node": one.node, "act": f"SIGKILL process {one.identity.pid}", "why": str(one)}
            for one in living
        ]
        documents.show_dialogue(pair, "stop", steps, form)
        return
    if not force:
        what = " and ".join(map(str, living)) if living else "nothing of it"
        raise Unreachable(
            f"The supervisor of {pair} is gone, so its guest cannot be asked to shut down; "
            f"{what} still {'runs' if len(living) < 2 else 'run'}.",
            hint=f"`coloctl stop {pair} --force` ends what is left and clears its folder",
        )
    confirm(pair, _question(pair, force=bool(living)), yes=yes or not living)
    ended = asyncio.run(end_stale(pair))
    _tell(pair, "killed" if ended else "nothing was left running", form)


def _tell(pair: str, how: str, form: str) -> None:
    if form == "json":
        documents.print_json({"schema": documents.SCHEMA, "name": pair, "how": how})
    else:
        print(f"{pair} is stopped ({how}).")
