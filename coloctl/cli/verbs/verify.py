"""Define the verb `verify`: compare both nodes' disks and memory while the guest runs.

Asks the supervisor through `cli.acting`, which calls `control.acts`.
"""

from __future__ import annotations

from collections.abc import Mapping

import click

from coloctl.cli.acting import VerbCall
from coloctl.cli.options import (
    WaitingCommand,
    dry_run_option,
    format_option,
    pair_argument,
    wait_option,
)
from coloctl.cli.views import plain
from coloctl.control.acts import VERIFY_WAIT_S
from coloctl.model.units import size
from coloctl.model.verified import MemoryVerified, Verified, VerifyOutcome

#: The exit codes that are no error of the supervisor's.
_CODES: Mapping[str, int] = {
    VerifyOutcome.EQUAL: 0,
    VerifyOutcome.DIFFERENT: 1,
    VerifyOutcome.BROKEN_OFF: 6,
}


@click.command(cls=WaitingCommand)
@pair_argument
@wait_option(
    VERIFY_WAIT_S,
    "How long to wait for the result (default a day); what takes longer goes on.",
)
@click.option(
    "--memory/--no-memory",
    default=None,
    help="Compare the guest's memory too, or its disks alone (default: verify.memory).",
)
@dry_run_option
@format_option("pretty", "json")
def verify(*, pair: str, wait: float, memory: bool | None, dry_run: bool, form: str) -> int:
    """Compare the disks and the memory of both nodes of PAIR while its guest runs.

    Nothing is written, and the guest is held for no longer than a checkpoint. Of memory only
    pages that are still on both nodes can be compared. What differs is named by disk and offset
    or by address; `verify.on_difference` in the pair file says what follows. Any other act of the
    pair, and the loss of a node, breaks the comparison off.

    Exit codes: 0 both nodes hold the same, 1 they do not, 3 there is no second copy now, 6 it was
    broken off or takes longer.
    """
    act = VerbCall(
        pair, "verify", form, dry_run, drawn=True,
        asked={} if memory is None else {"memory": memory},
        interrupted=f"Interrupted; the verification of {pair} goes on.",
    )  # fmt: skip
    found = act.carry_out(lambda acts: acts.verify(wait, memory=memory))
    if found is None:
        return 0
    if form == "json":
        plain.print_json({"schema": plain.SCHEMA, "name": pair, **found.to_json()})
    else:
        _tell(pair, found)
    return _CODES[found.outcome]


def _tell(pair: str, found: Verified) -> None:
    print(f"{pair}: {found.sentence()}")
    for disk in found.disks:
        for begin, end in disk.differs:
            print(f"  {disk.disk}: {size(end - begin)} at byte {begin} differ")
        for begin, end in disk.unsettled:
            print(f"  {disk.disk}: {size(end - begin)} at byte {begin} were written all the time")
    if found.disks:
        read = sum(disk.read for disk in found.disks)
        print(f"  {size(read)} of data were read on each node.")
    if found.memory:
        print(f"  {found.memory}")
    if found.pages is not None:
        _tell_pages(found.pages)
    print(f"  It took {found.took_s:g} s.")
    if found.outcome is VerifyOutcome.DIFFERENT:
        print(
            f"  The guest runs on node {found.primary}. Where that copy is the right one, "
            f"`coloctl unprotect {pair}` and `coloctl reprotect {pair}` put node "
            f"{found.secondary}'s right."
        )


def _tell_pages(memory: MemoryVerified) -> None:
    for begin, end in memory.places:
        print(f"  {memory.block}: {size(end - begin)} at guest-physical address {begin:#x} differ")
    print(
        f"  Of {memory.pages} pages of memory {memory.still} were still, {memory.different} of "
        f"them different; {memory.moving} moved and were not compared."
    )
    if memory.left_out:
        print(f"  {size(memory.left_out)} of the guest's memory were not looked at.")
