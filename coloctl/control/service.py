"""Answer each command of a pair: read the state, or perform an act.

Made by `control.daemon.serve`; `control.server` calls the handlers with values of
`control.commands`. Acts are those of `supervisor.acts`; answers about the state come from
`supervisor.evidence`, `supervisor.history` and `supervisor.dialogue`.

Invariant: a handler returns a value or a document and never encodes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from coloctl.colo import tls
from coloctl.control.commands import (
    ControlCommand,
    NodeQmp,
    PairCheckpoint,
    PairFailover,
    PairFenceConfirm,
    PairPause,
    PairProtect,
    PairResume,
    PairSet,
    PairStart,
    PairStop,
    PairSwitchover,
    PairUnprotect,
    PairVerify,
    QueryDump,
    QueryEvidence,
    QueryExplain,
    QueryHistory,
    QueryPair,
    QueryPlan,
    QueryRecording,
)
from coloctl.control.server import Handler
from coloctl.errors import ColoctlError, NotProtected, RunsAlone
from coloctl.model import tuning
from coloctl.model.answers import CheckpointTaken, PauseAnswer, SettingsChanged
from coloctl.model.explanation import Explanation
from coloctl.model.pair import Role
from coloctl.model.pairevent import PauseChanged
from coloctl.model.timeline import Timeline
from coloctl.model.verified import Verified
from coloctl.model.view import PairView
from coloctl.qmp.command import Command
from coloctl.supervisor import acts, evidence, history
from coloctl.supervisor.dialogue import dialogue
from coloctl.supervisor.loop import OBSERVE_DEADLINE_S, Supervisor
from coloctl.supervisor.state import PairState

log = logging.getLogger(__name__)


class Service:
    """Answers the commands of the control schema for one pair."""

    def __init__(self, state: PairState, supervisor: Supervisor) -> None:
        self.state = state
        self.supervisor = supervisor
        self.ended = asyncio.Event()
        self.failure: ColoctlError | None = None  #: what ended the supervisor against its will
        self.interrupts = 0
        #: The number of the last event that clients were sent; set by `control.daemon.serve`.
        self.last_event: Callable[[], int] = lambda: 0
        self._hurry = asyncio.Event()
        self._asked: asyncio.Task[Any] | None = None  #: a client's request to stop the pair

    def interrupt(self) -> None:
        """Ask for the end of the pair; asked again, end it at once."""
        self.interrupts += 1
        (self._hurry if self.ended.is_set() else self.ended).set()

    async def end(self) -> None:
        """End every process of the pair; where that cannot be done, `failure` has the reason."""
        hurried = asyncio.create_task(self._hurry.wait())
        try:
            while self.state.running():
                stop = await self._one_stop(hurried)
                if stop.done() and not stop.cancelled():
                    await stop
        except ColoctlError as error:
            log.error("The pair could not be ended: %s", error.message)
            self.failure = self.failure or error
        finally:
            hurried.cancel()

    async def _one_stop(self, hurried: asyncio.Task[Any]) -> asyncio.Task[Any]:
        """Try once to stop the pair; return when the try has ended or the next is to cut it short.

        A client's request cuts ours short; from then on it is waited for in its place.
        """
        if hurried.done():
            stop = asyncio.create_task(acts.stop(self.state, force=True, back_wait_s=0))
            await asyncio.wait({stop})
            return stop
        stop = self._asked or asyncio.create_task(acts.stop(self.state, force=False))
        await asyncio.wait({stop, hurried}, return_when=asyncio.FIRST_COMPLETED)
        return stop

    async def begin(self, *, protect: bool) -> None:
        """Start the pair; a start that leaves no guest running ends the supervisor with `failure`.

        A guest that serves but could not be protected is kept: `supervisor.auto_reprotect` tries
        again.
        """
        try:
            await self._start(PairStart(protect=protect))
        except RunsAlone as error:
            log.error("%s", error.message)
        except ColoctlError as error:
            self.failure = error
            self.ended.set()

    def handlers(self) -> Mapping[type[ControlCommand], Handler]:
        """Return what answers each command of a pair."""
        acting: dict[type[ControlCommand], Handler] = {
            PairStart: self._start,
            PairFailover: self._failover,
            PairProtect: self._protect,
            PairUnprotect: self._unprotect,
            PairSwitchover: self._switchover,
            PairStop: self._stop,
            PairSet: self._set,
            PairCheckpoint: self._checkpoint,
        }
        return {
            **{kind: self._explained(kind.NAME, act) for kind, act in acting.items()},
            QueryPair: self._query_pair,
            QueryDump: self._query_dump,
            QueryExplain: self._query_explain,
            QueryEvidence: self._query_evidence,
            QueryHistory: self._query_history,
            QueryRecording: self._query_recording,
            QueryPlan: self._query_plan,
            PairPause: self._pause,
            PairResume: self._resume,
            PairFenceConfirm: self._confirm_fence,
            PairVerify: self._verify,
            NodeQmp: self._qmp,
        }

    def _explained(self, command: str, act: Handler) -> Handler:
        """Wrap ``act`` so that its client learns in a sentence what cut it short."""

        async def carried_out(asked: ControlCommand) -> Any:
            try:
                return await act(asked)
            except asyncio.CancelledError:
                name = self.state.spec.name
                if not (why := self.state.cut_short):
                    raise
                raise ColoctlError(
                    f"The {command.removeprefix('pair-')} of {name} was cut short: {why}",
                    hint=f"`coloctl status {name}` shows the pair as it is now",
                ) from None

        return carried_out

    async def _query_pair(self, asked: QueryPair) -> PairView:
        return self.state.view()

    async def _query_dump(self, asked: QueryDump) -> Any:
        """Return both without awaiting between them, so that no event is in both or in neither."""
        return {"seq": self.last_event(), "records": evidence.records(self.state)}

    async def _query_explain(self, asked: QueryExplain) -> Explanation:
        return evidence.explanation(self.state)

    async def _query_evidence(self, asked: QueryEvidence) -> Any:
        return evidence.evidence(self.state)

    async def _query_history(self, asked: QueryHistory) -> history.Past:
        return history.read(self.state.ground.folder / history.FILE)

    async def _query_recording(self, asked: QueryRecording) -> Any:
        return self.state.recorders[asked.node].lines()

    async def _query_plan(self, asked: QueryPlan) -> Any:
        state = self.state
        primary = state.seat_of(Role.PRIMARY)
        return dialogue(
            state.spec,
            await tls.described(state.spec, state.ground),
            asked.verb,
            state.protection,
            asked.to,
            primary=primary.name if primary else "a",
            delay_ms=state.delay_ms,
            changed=tuning.changed(state.spec, asked.settings),
            memory=asked.memory,
        )

    async def _start(self, asked: PairStart) -> PairView:
        await acts.start(
            self.state,
            self.supervisor.watch,
            self.supervisor.entered,
            protected=asked.protect,
            begin_on=asked.begin_on,
        )
        return await self._seen()

    async def _protect(self, asked: PairProtect) -> PairView:
        self.state.want_protection(True)
        await acts.reprotect(self.state, self.supervisor.watch, self.supervisor.entered)
        return await self._seen()

    async def _unprotect(self, asked: PairUnprotect) -> PairView:
        await acts.unprotect(self.state)
        return await self._seen()

    async def _switchover(self, asked: PairSwitchover) -> Timeline:
        timeline = await acts.switchover(
            self.state,
            self.supervisor.watch,
            self.supervisor.entered,
            force=asked.force,
        )
        await self._seen()
        return timeline

    async def _seen(self) -> PairView:
        """Observe the pair now and return it; the last tick of the loop may be older."""
        seats = self.state.seats.values()
        await asyncio.gather(*(seat.observe(OBSERVE_DEADLINE_S) for seat in seats))
        return self.state.view()

    async def _failover(self, asked: PairFailover) -> Timeline:
        timeline = await acts.failover(self.state, asked.to, force=asked.force)
        await self._seen()
        return timeline

    async def _pause(self, asked: PairPause) -> PauseAnswer:
        return self._set_paused(True)

    async def _resume(self, asked: PairResume) -> PauseAnswer:
        return self._set_paused(False)

    def _set_paused(self, paused: bool) -> PauseAnswer:
        before = self.state.paused
        if paused is not before:
            self.state.pause(paused)
            self.state.emit(PauseChanged(paused=paused))
        return PauseAnswer(paused, before)

    async def _confirm_fence(self, asked: PairFenceConfirm) -> PairView:
        acts.confirm_fence(self.state, asked.node)
        return self.state.view()

    async def _stop(self, asked: PairStop) -> Any:
        self._asked = mine = asyncio.current_task()
        try:
            how = await acts.stop(self.state, force=asked.force, timeout_s=asked.timeout_s)
        finally:
            if self._asked is mine:  # a later request may have taken its place
                self._asked = None
        self.ended.set()
        return {"how": how}

    async def _set(self, asked: PairSet) -> SettingsChanged:
        return SettingsChanged(await acts.set_values(self.state, asked.settings))

    async def _checkpoint(self, asked: PairCheckpoint) -> CheckpointTaken:
        checkpoints = (await acts.checkpoint(self.state)).checkpoints
        return CheckpointTaken(checkpoints.count, checkpoints.last_pause_ms)

    async def _verify(self, asked: PairVerify) -> Verified:
        return await self.supervisor.verifying.verify(memory=asked.memory)

    async def _qmp(self, asked: NodeQmp) -> Any:
        vm = self.state.seats[asked.node].vm
        if vm is None:
            raise NotProtected(
                f"Node {asked.node} has no running QEMU.",
                hint=f"`coloctl status {self.state.spec.name}` shows where the guest runs",
            )
        command = Command(asked.execute, asked.arguments, oob=asked.oob)
        execute = vm.monitor.rescue if asked.oob else vm.monitor.execute
        return await execute(command, asked.timeout_s)
