"""Follow how the other machines of a pair are reached, and take up again what a loss left open.

Called by `supervisor.loop`. Where a machine answers again with another agent, or after a reboot,
`vm.VM.reopen` opens the monitors of its QEMU again, and the heartbeat watches the link by new ends.
A QEMU that was left behind there is ended by `supervisor.acts.left`.

Invariant: nothing is decided here about the pair. A machine that is lost changes what is shown, and
one that is back is observed again before anything follows from that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from coloctl import bounded
from coloctl.errors import ColoctlError
from coloctl.host.base import Host
from coloctl.host.records import Contact, Reach
from coloctl.machine.cmdline import monitor_sockets
from coloctl.model.observation import Diagnosis, Life
from coloctl.model.pair import NODES, NodeName
from coloctl.model.protection import Protection
from coloctl.model.qapi import COLOMode
from coloctl.model.view import Merge
from coloctl.supervisor.acts import Watch, merge
from coloctl.supervisor.acts import left as left_behind
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: How often a machine is looked at, apart from each change of its reach; seconds.
PERIOD_S = 1.0
#: A round trip that is shown, milliseconds: a busy machine was seen to take a tenth of it.
LATE_MS = 1000.0
#: For the monitors of one QEMU; it is tried again after each period. Seconds.
REOPEN_WAIT_S = 10.0


class MachineWatch:
    """Attends the machines of one pair that are not this one."""

    def __init__(
        self,
        state: PairState,
        watch: Watch,
        *,
        renew: Callable[[NodeName], None],
        missed: Callable[..., None],
        back: Callable[[], None],
    ) -> None:
        """Prepare; ``renew`` observes a node by new ends, ``missed`` gets an event that was lost.

        ``back`` is called when a QEMU that was left behind is proven gone.
        """
        self._state, self._watch = state, watch
        self._renew, self._missed, self._back = renew, missed, back
        self._sessions = {node: host.reach.session for node, host in state.ground.hosts.items()}
        self._complaints: dict[NodeName, str] = {}
        self._explained: dict[NodeName, tuple[str, str]] = {}  #: reason shown, and that before it

    async def run(self) -> None:
        """Attend each machine until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for node in NODES:
                tasks.create_task(self._follow(node, self._state.ground.hosts[node]))
                tasks.create_task(self._attend(node, self._state.ground.hosts[node]))

    async def _follow(self, node: NodeName, host: Host) -> None:
        """Show how the machine of ``node`` is reached, as soon as that changes.

        It does not wait for `_attend`: a request to a machine that is lost has its own deadline.
        """
        while (reach := host.reach).contact is not Contact.HERE:
            try:
                self._show(node, reach)
            except Exception:
                log.exception("The reach of node %s could not be shown", node)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await host.reached(reach)

    async def _attend(self, node: NodeName, host: Host) -> None:
        """Look at the machine of ``node`` each second, and at once when its reach has changed.

        An error in one look is logged, and the next look comes.
        """
        reach = host.reach
        bounded_s = 0.0
        while reach.contact is not Contact.HERE:
            try:
                await self.look(node)
                if not reach.out and self._state.clock.now() - bounded_s > bounded.PERIOD_S:
                    bounded_s = self._state.clock.now()
                    await host.keep_bounded(bounded.node_logs(self._state.ground.rundir(node)))
            except ColoctlError as error:
                self._complain(node, error.message)
            except Exception:
                log.exception("The machine of node %s could not be looked at", node)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await host.reached(reach)
            reach = host.reach

    def _complain(self, node: NodeName, sentence: str) -> None:
        if self._complaints.get(node) != sentence:
            log.warning("Node %s: %s", node, sentence)
        self._complaints[node] = sentence

    async def look(self, node: NodeName) -> None:
        """Show how the machine is reached, and take up what its loss left open.

        Raises `ColoctlError` for what cannot be done now; the next look tries it again.
        """
        state, reach = self._state, self._state.ground.hosts[node].reach
        self._show(node, reach)
        if reach.out:
            return
        if node in state.left:
            await left_behind.finish(state, node)
            log.info("The QEMU that was left behind on node %s is gone.", node)
            self._back()
        seat = state.seats[node]
        vm = seat.vm
        if vm is not None and not seat.retired and vm.monitor.gone:
            await self._take_up(node, vm)
        elif reach.session != self._sessions[node]:
            self._renew(node)
        self._sessions[node] = reach.session
        self._complaints.pop(node, None)

    async def _take_up(self, node: NodeName, vm: VM) -> None:
        """Open the monitors of ``vm`` again and observe it by them; raises `ColoctlError`.

        A process that is gone, or not found yet, is left as it is.
        """
        state, seat = self._state, self._state.seats[node]
        if vm.process.life() in (Life.DEAD, Life.UNKNOWN):
            return
        sockets = monitor_sockets(vm.rundir)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REOPEN_WAIT_S):
                await vm.reopen(sockets, record=state.recorders[node].record)
        vitals = await vm.observe(REOPEN_WAIT_S)
        if seat.vm is not vm or seat.retired:
            return
        seat.unwatch()
        if seat.merge is Merge.UNDER_WAY:
            merge.begin(state, seat)
        seat.in_colo = vitals.colo_mode is not COLOMode.NONE
        self._watch(seat)
        self._renew(node)
        if state.protection is Protection.COLO and not seat.in_colo:
            self._missed(seat, "COLO_EXIT", mode=seat.view.role, reason="error")

    # -- what is shown

    def _show(self, node: NodeName, reach: Reach) -> None:
        """Show in the node's view, and in the reason of the state, that a machine is lost.

        One that answers late is shown in the node's view alone.
        """
        state, seat = self._state, self._state.seats[node]
        why = f"{reach.why.rstrip('.') or 'it does not answer'}." if reach.out else ""
        late = late_sentence(state.ground.hosts[node], node, reach)
        if (seat.view.reach, seat.view.late) != (why, late):
            seat.view = replace(seat.view, reach=why, late=late)
        shown = self._explained.get(node)
        if why and seat.vm is not None and shown is None:
            sentence = f"Node {node}'s machine is out of reach: {why}"
            if state.finding.diagnosis in (Diagnosis.HEALTHY, Diagnosis.HOST_UNREACHABLE):
                sentence += (
                    " Its QEMU runs on as far as the replication link and the checkpoints show."
                )
            self._explained[node] = (sentence, state.reason)
            state.explain(sentence)
        elif not why and shown is not None:
            del self._explained[node]
            if state.reason == shown[0]:
                state.explain(shown[1])


def late_sentence(host: Host, node: NodeName, reach: Reach) -> str:
    """Return what a late answer of a machine means, or "" where it answers soon enough."""
    if reach.out or reach.round_trip_ms < LATE_MS:
        return ""
    return (
        f"{host.machine.name} answers over ssh after {reach.round_trip_ms / 1000:.1f} s: acts take "
        f"longer, and a silence of node {node}'s QEMU is noticed that much later."
    )
