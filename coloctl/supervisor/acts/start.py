"""The way up: the guest runs, and where asked it is protected."""

from __future__ import annotations

from coloctl.colo import generation, launch
from coloctl.colo.generation import Companions, Worth
from coloctl.errors import PairBusy
from coloctl.ha.arbiter import open_arbiter
from coloctl.model.event import Kind
from coloctl.model.pair import NodeName, Role, other
from coloctl.model.protection import Fact, Protection
from coloctl.model.view import PairView
from coloctl.supervisor.acts.protect import Entered, Watch, bring_secondary, seat, sentence
from coloctl.supervisor.acts.stop import end_all
from coloctl.supervisor.state import PairState


async def start(
    state: PairState,
    watch: Watch,
    entered: Entered,
    *,
    protected: bool,
    begin_on: NodeName | None = None,
) -> PairView:
    """The guest runs, protected where asked; one that already runs alone is only protected.

    ``begin_on``: with that node's disks, whatever the other's are worth. Raises `PairBusy` when
    there is nothing left to start, else what launching or protecting raises; a guest that did not
    run before does not run then, and one that did still does.
    """
    async with state.acting("start", protect=protected, **{"from": begin_on} if begin_on else {}):
        fresh = state.protection is Protection.DOWN
        alone = state.protection is Protection.UNPROTECTED
        if not fresh and (not alone or not protected or begin_on):
            raise PairBusy(
                f"Pair {state.spec.name} already runs ({state.protection}).",
                hint=f"`coloctl status {state.spec.name}` shows it",
            )
        state.want_protection(protected)
        try:
            held = False
            if fresh:
                held = await _start_guest(state, watch, hold=protected, begin_on=begin_on)
            if protected:
                await bring_secondary(state, watch, entered, held=held)
        except BaseException as error:
            if fresh:
                await end_all(state)
                state.note(Fact.OPERATOR_STOPPED, "The start did not succeed.")
                state.explain(f"The start did not succeed: {sentence(error)}")
            raise
    return state.view()


async def _start_guest(
    state: PairState, watch: Watch, *, hold: bool, begin_on: NodeName | None
) -> bool:
    """The primary is there, with the guest's disks; answers whether it is held at its beginning.

    It is held only where it will be protected, can boot under protection, and both nodes' images
    are the same: its disks need no copy then.
    """
    spec, ground = state.spec, state.ground
    state.progress("images")
    companions = await generation.read(spec, ground.hosts)
    claim = await open_arbiter(spec, ground.folder).current()
    numbers = [one.generation for one in companions.values()]
    state.generation = max(*numbers, claim.generation if claim else 0)
    promoted = (claim.node, claim.generation) if claim else None
    node = begin_on or generation.source(companions, promoted=promoted)
    equal = await launch.images_equal(spec, ground)
    alone = launch.boots_alone(spec, ground)
    held = hold and equal and not alone
    if begin_on:
        await _overrule(state, begin_on)
    if not held:
        await _leave_behind(state, companions, other(node))
    state.progress("primary")
    record = state.recorders[node].record
    vm = await launch.launch_primary(spec, ground, node, paused=held, record=record)
    seat(state, watch, vm, Role.PRIMARY)
    if not held:
        state.note(Fact.GUEST_STARTED, f"The guest runs on node {node}, alone.")
    return held


async def _overrule(state: PairState, node: NodeName) -> None:
    """An operator's word: the disks of ``node`` are the newest from here on."""
    spec, ground, number = state.spec, state.ground, state.generation + 1
    await open_arbiter(spec, ground.folder).claim(spec.name, node, number)
    await generation.write(spec, ground.hosts, node, number)
    state.grow_generation()
    state.record(Kind.NOTE, node=node, data={"begun-from": node})


async def _leave_behind(state: PairState, companions: Companions, node: NodeName) -> None:
    """Before the guest runs on without them: disks as new as its own are in sync no more."""
    left = companions[node]
    whole = left.state in (Worth.IN_SYNC, Worth.FOLLOWING)
    if whole and left.generation == state.generation:
        hosts = state.ground.hosts
        await generation.write(state.spec, hosts, node, left.generation, Worth.DIVERGED)
