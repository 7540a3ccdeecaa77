"""Define the verb `stop`.

Asks the supervisor through `control.acts`; where it is gone, `supervisor.leftovers` ends what it
left.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import click

from coloctl import paths
from coloctl.cli import reach, world
from coloctl.cli.acting import VerbCall
from coloctl.cli.options import (
    WaitingCommand,
    confirm,
    dry_run_option,
    format_option,
    pair_argument,
    wait_option,
    yes_option,
)
from coloctl.cli.views import plain
from coloctl.control.acts import SHUTDOWN_WAIT_S, Acts
from coloctl.errors import ColoctlError, GuestCutOff, NoSuchPair, Unreachable

#: How the answer of a stop begins whose guest did not power itself off.
CUT_OFF = "cut off"


@click.command(cls=WaitingCommand)
@pair_argument
@click.option("--force", is_flag=True, help="End QEMU without asking the guest to shut down.")
@wait_option(
    SHUTDOWN_WAIT_S,
    f"How long the guest may take to shut down (default {SHUTDOWN_WAIT_S:.0f} s) before it is "
    "ended.",
)
@dry_run_option
@yes_option
@format_option("pretty", "json")
def stop(*, pair: str, force: bool, wait: float, dry_run: bool, yes: bool, form: str) -> int:
    """Shut the guest of PAIR down and leave nothing behind.

    The guest stays protected while it shuts down. One that has not powered itself off when the time
    of --wait is over is cut off, as if its power had failed: the exit code is 8 then.

    With --force the guest loses what it had not written to its disk. Where the supervisor is gone,
    --force ends what it left running and clears the pair's folder.
    """
    try:
        client = reach.connect(pair)
    except Unreachable:
        _stop_leftovers(pair, force=force, dry_run=dry_run, yes=yes, form=form)
        return 0
    except NoSuchPair:
        if not paths.pair_dir(pair).is_dir():
            raise
        _stop_leftovers(pair, force=force, dry_run=dry_run, yes=yes, form=form)
        return 0
    with client:
        how = VerbCall(
            pair, "stop", form, dry_run, yes=yes, drawn=True,
            question=_question(pair, force),
            interrupted=f"Interrupted; the supervisor of {pair} goes on with stopping it.",
        ).over(Acts(client), lambda acts: acts.stop(force=force, shutdown_s=wait))  # fmt: skip
    if how is None:
        return 0
    _tell(pair, how, form)
    if not how.startswith(CUT_OFF):
        return 0
    if form == "json":
        return GuestCutOff.exit_code
    raise GuestCutOff(
        f"The guest of {pair} did not power itself off within {wait:g} s and was cut off.",
        hint="it may ignore its power button (install acpid or systemd-logind in it, or use "
        "guest.agent), or need more time: --wait",
    )


def _question(pair: str, force: bool) -> str:
    if force:
        return f"This ends the guest of {pair} at once, as if its power were cut."
    return f"This shuts the guest of {pair} down."


def _stop_leftovers(pair: str, *, force: bool, dry_run: bool, yes: bool, form: str) -> None:
    """End what a supervisor that is gone has left, when that was asked for."""
    from coloctl.control.daemon.spawn import end_stale
    from coloctl.supervisor import leftovers
    from coloctl.supervisor.started import remembered

    folder = paths.pair_dir(pair)
    living = leftovers.find(folder)
    if dry_run:
        steps: list[dict[str, Any]] = [
            {"node": one.node, "act": f"SIGKILL process {one.identity.pid}", "why": str(one)}
            for one in living
        ]
        plain.show_dialogue(pair, "stop", steps, form)
        return
    if not force:
        if living:
            raise Unreachable(
                f"{leftovers.told(folder, living)} So it cannot be asked to shut down.",
                hint=leftovers.advice(folder, living),
            )
        raise Unreachable(
            f"The supervisor of {pair} is gone; nothing of it still runs.",
            hint=f"`coloctl stop {pair} --force` clears its folder",
        )
    with contextlib.suppress(ColoctlError):  # a folder that does not show which pair it was of
        if started := remembered(folder):
            world.enter(started.pair)
    confirm(pair, _question(pair, force=bool(living)), yes=yes or not living)
    ended = asyncio.run(end_stale(pair))
    _tell(pair, "killed" if ended else "nothing was left running", form)


def _tell(pair: str, how: str, form: str) -> None:
    if form == "json":
        plain.print_json({"schema": plain.SCHEMA, "name": pair, "how": how})
    else:
        folder = paths.pair_dir(pair)
        stays = f" Its folder {folder} cannot be removed." if folder.exists() else ""
        print(f"{pair} is stopped ({how}).{stays}")
