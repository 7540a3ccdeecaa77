"""Define the verb `start`: check pair file and hosts, start a supervisor, ask it for the pair.

`cli.verbs.run` and `cli.handed_over` load pair files through `load` too. Hosts and images are
checked by `colo.inspect` and `colo.inuse`, `control.daemon.spawn` starts the supervisor, and
`control.acts` asks it to start and protect the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from coloctl import pairfile, paths
from coloctl.cli import complaint, reach, world
from coloctl.cli.options import (
    WaitingCommand,
    confirm,
    dry_run_option,
    format_option,
    free_address,
    metrics_option,
    wait_option,
    yes_option,
)
from coloctl.cli.views import plain
from coloctl.cli.views.progress import drawing
from coloctl.colo import equal_disks, first_copy, frames, generation, inuse, launch, tls
from coloctl.colo.ground import Facts, placed
from coloctl.colo.inspect import prepare
from coloctl.control.acts import PROTECT_WAIT_S, QUERY_WAIT_S, Acts, Document, read_view
from coloctl.control.client import ControlClient, ControlEvent
from coloctl.control.daemon.spawn import (
    SpawnedSupervisor,
    inherited,
    refuse_living,
    spawned_supervisor,
)
from coloctl.errors import (
    LaunchError,
    MonitorError,
    NoSuchPair,
    OutcomeUnknown,
    PairBusy,
    RunsAlone,
    StillAtWork,
    Unreachable,
    UsageError,
)
from coloctl.model.pair import NODES, NodeName, PairSpec, other
from coloctl.model.protection import Protection
from coloctl.supervisor import given_up
from coloctl.supervisor.dialogue import dialogue
from coloctl.supervisor.dialogue_items import act
from coloctl.tasks import side_by_side

#: After so long, seconds, a start says what it does: with a round trip of 2 s it takes a minute.
SLOW_S = 20.0
SLOW = (
    "The machines of {} are still being looked at. Over ssh each question is a round trip: "
    "`coloctl host check` measures it."
)

spec_argument = click.argument("spec_path", metavar="SPEC", type=click.Path(path_type=Path))
alone_option = click.option(
    "--no-protect", "alone", is_flag=True, help="Run the guest alone; a later start protects it."
)


@dataclass(frozen=True)
class StartRequest:
    """The options of one `start`."""

    pair: PairSpec
    protect: bool
    wait_s: float | None  #: None: only until the supervisor is at work
    form: str
    metrics: str = ""  #: the address for a new supervisor's metrics
    adopt: bool = False  #: QEMUs without a supervisor are taken over
    begin_on: NodeName | None = None  #: with that node's disks, also where the other's are newer

    def send(self, client: ControlClient, wait_s: float) -> Document:
        """Ask the supervisor to start the pair; return the document of its status then."""
        return Acts(client).start(protect=self.protect, begin_on=self.begin_on, wait_s=wait_s)


class _AtWork(Exception):
    """The supervisor has begun: ends a wait from inside an event handler."""


@click.command(cls=WaitingCommand)
@spec_argument
@alone_option
@wait_option(
    PROTECT_WAIT_S,
    f"Wait until the pair is in COLO, at most T (default {PROTECT_WAIT_S:.0f} s); "
    "after T the start goes on without you.",
)
@click.option("--no-wait", is_flag=True, help="Return as soon as the supervisor is at work.")
@click.option(
    "--adopt", is_flag=True, help="Take over a pair that runs without a supervisor, as it is."
)
@click.option(
    "--from",
    "begin_on",
    type=click.Choice(NODES),
    help="Start with this node's disks, even where the other node's are newer; what only those "
    "hold is lost.",
)
@yes_option
@metrics_option
@dry_run_option
@format_option("pretty", "json")
def start(
    *,
    spec_path: Path,
    alone: bool,
    wait: float,
    no_wait: bool,
    adopt: bool,
    begin_on: NodeName | None,
    yes: bool,
    metrics: str,
    dry_run: bool,
    form: str,
) -> None:
    """Start the pair that SPEC describes, and protect it.

    Both QEMUs run detached, and so does the supervisor that watches them. A guest that already runs
    alone is protected while it goes on. Ctrl-C undoes a start that is not finished.
    """
    pair = load(spec_path)
    if dry_run:
        planned = _planned(pair, protect=not alone, begin_on=begin_on)
        plain.show_dialogue(pair.name, "start", planned, form)
        return
    if begin_on:
        lost = f"All that only node {other(begin_on)}'s disks hold of {pair.name} is lost."
        confirm(pair.name, lost, yes=yes)
    request = StartRequest(
        pair, not alone, None if no_wait else wait, form, metrics, adopt, begin_on
    )
    began = time.monotonic()
    client = _answering(pair)
    view = _start_new(request) if client is None else _start_running(client, request)
    _tell(view, request, time.monotonic() - began)


def load(path: Path) -> PairSpec:
    """Load the pair that the file describes and check its files; raises `SpecError`.

    For a user without root it goes on in the user namespace of the lab that holds the pair's hosts.
    """
    pair = pairfile.load(path.absolute())
    world.enter(pair)
    pairfile.check_files(pair)
    return pair


async def preflight(pair: PairSpec, *, protect: bool) -> Facts:
    """Check that hosts, QEMU, disks, taps and ports are there for the taking; nothing was started.

    Return what was found out, for the supervisor. Raises what the start itself would raise later.
    """
    loop = asyncio.get_running_loop()
    slow = loop.call_later(SLOW_S, partial(click.echo, SLOW.format(pair.name), err=True))
    try:
        ground = await prepare(pair)
    finally:
        slow.cancel()
    try:
        for said in await given_up.end(placed(pair, ground.facts), ground.hosts):
            click.echo(said, err=True)
        await side_by_side(
            inuse.require_idle(pair, ground.hosts),
            frames.require_way(pair, ground, protect=protect),  # listens at a port meanwhile
            tls.described(pair, ground),
        )
        nodes = NODES if protect else NODES[:1]
        await side_by_side(*(launch.check_room(pair, ground, node) for node in nodes))
        return ground.facts
    finally:
        await ground.aclose()


def _planned(pair: PairSpec, *, protect: bool, begin_on: NodeName | None) -> list[dict[str, Any]]:
    """Return the dialogue of a start now, asked of the supervisor where one runs."""
    client = _answering(pair)
    if client is None:
        return asyncio.run(_dialogue(pair, protect=protect, begin_on=begin_on))
    with client:
        return Acts(client).plan("start")


async def _dialogue(
    pair: PairSpec, *, protect: bool, begin_on: NodeName | None
) -> list[dict[str, Any]]:
    ground = await prepare(pair)
    pair = placed(pair, ground.facts)
    try:
        companions = await generation.read(pair, ground.hosts)
        primary = begin_on or generation.source(companions)
        node, made = other(primary), dict[Path, int]()
        if protect:
            known = companions[node].held_guest
            made.update(await first_copy.require_place(pair, ground, node, known=known))
        alike = protect and not made and await equal_disks.disks_alike(pair, ground, companions)
        steps = dialogue(
            pair,
            await tls.described(pair, ground),
            "start",
            Protection.DOWN,
            primary=primary,
            protect=protect,
            in_sync=alike,
        )
        why = f"there is none on {ground.hosts[node].machine.name}; the guest's disk is copied"
        return [act(node, f"qemu-img create {path} {size}", why) for path, size in made.items()] + [
            *steps
        ]
    finally:
        await ground.aclose()


def _answering(pair: PairSpec) -> ControlClient | None:
    """Connect to the supervisor of this very pair file, where one runs.

    Raises `PairBusy` when it was started from another file.
    """
    try:
        client = reach.connect(pair.name)
    except (NoSuchPair, Unreachable):
        return None
    source = Acts(client).view().spec_path
    if source != str(pair.source):
        client.close()
        raise PairBusy(
            f"A pair called {pair.name} already runs; it was started from {source}.",
            hint="give one of the two pairs another name",
        )
    return client


def _take_over(left: PairSpec, request: StartRequest) -> dict[str, Any]:
    """Start a supervisor that adopts the pair; return its status as it was found."""
    free_address(request.metrics)
    supervisor = SpawnedSupervisor(left, request.metrics, adopts=True)
    with supervisor.connect() as client:
        return Acts(client).status_document()


def _start_new(request: StartRequest) -> dict[str, Any] | None:
    if request.adopt and (left := inherited(request.pair)) is not None:
        return _take_over(left.pair, request)
    refuse_living(paths.pair_dir(request.pair.name))
    free_address(request.metrics)
    facts = asyncio.run(preflight(request.pair, protect=request.protect))
    name = request.pair.name
    undone = f"Interrupted; the start of {name} was undone and nothing of it is left."
    with (
        complaint.on_interrupt(undone),
        spawned_supervisor(request.pair, request.metrics, facts) as supervisor,
    ):
        first = 0
        try:
            with supervisor.connect() as client:
                first = Acts(client).view().supervisor_pid or 0
                view = _send(client, request)
        except (StillAtWork, RunsAlone):
            supervisor.keep()
            raise
        except OutcomeUnknown as error:
            _keep_successor(supervisor, first)
            raise supervisor.exit_error() or error from error
        except LaunchError as error:
            # Its log goes with the pair's folder.
            error.hint = f"`coloctl start {request.pair.source} --dry-run` prints its command line"
            raise
        except MonitorError as error:
            raise supervisor.exit_error() or error from error
        supervisor.keep()
    return view


def _keep_successor(supervisor: SpawnedSupervisor, first: int) -> None:
    """Raise `OutcomeUnknown` where process ``first`` was killed and another one goes on."""
    name = supervisor.name
    with contextlib.suppress(MonitorError), supervisor.connect() as client:
        if Acts(client).view().supervisor_pid == first or not first:
            return
        supervisor.keep()
    if supervisor.kept:
        raise OutcomeUnknown(
            "pair-start", f"The supervisor of {name} was killed; the next one finishes the start."
        )


def _start_running(client: ControlClient, request: StartRequest) -> dict[str, Any] | None:
    if request.metrics:
        client.close()
        raise UsageError(
            f"The supervisor of {request.pair.name} runs already; --metrics is for a new one.",
            hint="leave --metrics away",
        )
    goes_on = f"Interrupted; the supervisor of {request.pair.name} goes on with the start."
    with complaint.on_interrupt(goes_on), client:
        return _send(client, request)


def _send(client: ControlClient, request: StartRequest) -> dict[str, Any] | None:
    """Send the request; return the status after the start, None when that was not waited for."""
    name = request.pair.name

    def until_at_work(event: ControlEvent) -> None:
        if event.name == "STEP":
            raise _AtWork

    if request.wait_s is None:
        client.on_event = until_at_work
        try:
            return request.send(client, QUERY_WAIT_S)
        except _AtWork:
            return None
    with drawing(as_json=request.form == "json") as on_event:
        client.on_event = on_event
        try:
            return request.send(client, request.wait_s)
        except StillAtWork:
            raise StillAtWork(
                f"The start of {name} is not finished after {request.wait_s:g} s; it goes on.",
                hint=f"`coloctl wait {name} --for colo` waits longer, "
                f"`coloctl stop {name} --force` gives it up",
            ) from None


def _tell(view: dict[str, Any] | None, request: StartRequest, took_s: float) -> None:
    name = request.pair.name
    if request.form == "json":
        plain.print_json(view or {"schema": 1, "name": name, "waited": False})
    elif view is None:
        print(f"The start of {name} is under way; `coloctl wait {name} --for colo` waits for it.")
    else:
        print(plain.after_start(read_view(view), took_s))
