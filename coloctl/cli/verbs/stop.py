"""Define the verb `stop`.

Asks the supervisor through `control.acts`; where it is gone, `supervisor.leftovers` ends what it
left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
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
from coloctl.errors import (
    ColoctlError,
    GuestCutOff,
    NoSuchPair,
    NotConfirmed,
    Unreachable,
    UsageError,
)
from coloctl.model.pair import Role
from coloctl.model.view import PairView

#: How the answer of a stop begins whose guest did not power itself off.
CUT_OFF = "cut off"


@click.command(cls=WaitingCommand)
@pair_argument
@click.option("--force", is_flag=True, help="End QEMU without asking the guest to shut down.")
@click.option(
    "--without",
    metavar="NODE",
    type=click.Choice(["a", "b"]),
    multiple=True,
    help="With --force: the machine of NODE is gone for good; what may run there is given up. "
    "Given twice: of both nodes.",
)
@click.option(
    "--switched-off",
    is_flag=True,
    help="With --without: that machine is switched off and stays off. Asked for where it may run "
    "the guest itself.",
)
@wait_option(
    SHUTDOWN_WAIT_S,
    f"How long the guest may take to shut down (default {SHUTDOWN_WAIT_S:.0f} s) before it is "
    "ended.",
)
@dry_run_option
@yes_option
@format_option("pretty", "json")
def stop(
    *,
    pair: str,
    force: bool,
    without: tuple[str, ...],
    switched_off: bool,
    wait: float,
    dry_run: bool,
    yes: bool,
    form: str,
) -> int:
    """Shut the guest of PAIR down and leave nothing behind.

    The guest stays protected while it shuts down. One that has not powered itself off when the time
    of --wait is over is cut off, as if its power had failed: the exit code is 8 then. A machine
    that is out of reach at the end has 10 s to come back; what is left on it then is named.

    With --force the guest loses what it had not written to its disk. Where the supervisor is gone,
    --force ends what it left running and clears the pair's folder. That waits for a machine that
    cannot be reached, unless --without gives up what may still run there: it is ended when that
    machine is back and the pair is started on it, and its disks count as diverged.
    """
    lost = Lost(frozenset(without), switched_off)
    if (without and not force) or (switched_off and not without):
        raise UsageError(
            "--without needs --force, and --switched-off needs --without.",
            hint=f"`coloctl stop {pair} --force --without NODE` gives up a machine that is gone",
        )
    try:
        client = reach.connect(pair)
    except (NoSuchPair, Unreachable) as error:
        if isinstance(error, NoSuchPair) and not paths.pair_dir(pair).is_dir():
            raise
        _stop_leftovers(pair, lost, force=force, dry_run=dry_run, yes=yes, form=form)
        return 0
    with client:
        if without:
            _require_statement(pair, lost, _roles(Acts(client).view()))
        how = VerbCall(
            pair, "stop", form, dry_run, yes=yes, drawn=True,
            question=_question(pair, force),
            interrupted=f"Interrupted; the supervisor of {pair} goes on with stopping it.",
        ).over(Acts(client), lambda acts: acts.stop(force=force, shutdown_s=wait))  # fmt: skip
    if how is None:
        return 0
    if without and paths.pair_dir(pair).exists():
        _stop_leftovers(pair, lost, force=True, dry_run=False, yes=True, form=form)
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


@dataclass(frozen=True)
class Lost:
    """The machines that an operator calls gone for good, by their nodes."""

    nodes: frozenset[str]
    switched_off: bool


def _roles(view: PairView) -> dict[str, str]:
    return {name: node.role for name, node in view.nodes.items()}


def _require_statement(pair: str, lost: Lost, roles: Mapping[str, str]) -> None:
    """Require that an operator has stated that the primary's machine is off.

    Raises `NotConfirmed`.
    """
    for node in sorted(lost.nodes):
        if roles.get(node) != Role.PRIMARY or lost.switched_off:
            continue
        heir = f"`coloctl fence confirm {pair} {node}` lets its secondary take over; or else "
        given = "".join(f" --without {one}" for one in sorted(lost.nodes))
        raise NotConfirmed(
            f"Node {node} is the primary of {pair}: if its machine is not off, its guest may "
            "serve clients and write, and would do so beside one that is started later.",
            hint=f"switch that machine off, then {heir * (Role.SECONDARY in roles.values())}"
            f"`coloctl stop {pair} --force{given} --switched-off`",
        )


def _stop_leftovers(
    pair: str, lost: Lost, *, force: bool, dry_run: bool, yes: bool, form: str
) -> None:
    """End what a supervisor that is gone has left, when that was asked for."""
    from coloctl.control.daemon.spawn import end_stale
    from coloctl.supervisor import leftover, leftovers
    from coloctl.supervisor.started import remembered

    folder = paths.pair_dir(pair)
    living = leftovers.find(folder)
    if dry_run:
        steps: list[dict[str, Any]] = [
            {"node": one.node, "act": f"{act} process {one.identity.pid}", "why": str(one)}
            for one in living
            for act in ["give up" if one.doubt and one.node in lost.nodes else "SIGKILL"]
        ]
        plain.show_dialogue(pair, "stop", steps, form)
        return
    if not force:
        if living:
            raise Unreachable(
                f"{leftover.told(folder, living)} So it cannot be asked to shut down.",
                hint=leftover.advice(folder, living),
            )
        raise Unreachable(
            f"The supervisor of {pair} is gone; nothing of it still runs.",
            hint=f"`coloctl stop {pair} --force` clears its folder",
        )
    with contextlib.suppress(ColoctlError):  # a folder that does not show which pair it was of
        if started := remembered(folder):
            world.enter(started.pair)
    doubted = [one for one in living if one.doubt and one.node in lost.nodes]
    _require_statement(pair, lost, {one.node: one.role for one in doubted})
    given = "".join(f" What may still run of it on node {one.node} is given up." for one in doubted)
    confirm(pair, _question(pair, force=bool(living)) + given, yes=yes or not living)
    ended = asyncio.run(end_stale(pair, lost.nodes))
    left = "".join(f"; given up: {one}" for one in doubted)
    nothing = "nothing else was left running" if left else "nothing was left running"
    _tell(pair, ("killed" if ended else nothing) + left, form)


def _tell(pair: str, how: str, form: str) -> None:
    from coloctl.supervisor import leftover, leftovers

    if form == "json":
        plain.print_json({"schema": plain.SCHEMA, "name": pair, "how": how})
    else:
        folder = paths.pair_dir(pair)
        stays = f" Its folder {folder} cannot be removed." if folder.exists() else ""
        if stays and (living := leftovers.find(folder, dial=False)):
            stays = (
                f" Its folder {folder} stays and names what may still run: "
                f"{leftover.ending(folder, living)}."
            )
        print(f"{pair} is stopped ({how}).{stays}")
