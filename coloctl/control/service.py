"""What a supervisor answers: each command of the control schema, carried out for one pair."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from coloctl.control.server import Handler
from coloctl.errors import ColoctlError, NotProtected, RunsAlone
from coloctl.model.pair import Role
from coloctl.model.pairevent import PauseChanged
from coloctl.qmp.command import Command
from coloctl.supervisor import acts, evidence, history
from coloctl.supervisor.dialogue import dialogue
from coloctl.supervisor.loop import OBSERVE_DEADLINE_S, Supervisor
from coloctl.supervisor.state import PairState

Arguments = Mapping[str, Any]

log = logging.getLogger(__name__)

#: A command sent by hand to one QEMU, seconds.
QMP_DEADLINE_S = 30.0


class Service:
    """Answers the commands of the control schema for one pair."""

    def __init__(self, state: PairState, supervisor: Supervisor) -> None:
        self.state = state
        self.supervisor = supervisor
        self.ended = asyncio.Event()
        self.failure: ColoctlError | None = None  #: what ended the supervisor against its will
        self.interrupts = 0
        #: The number of the last event that clients were sent; set by whoever makes the server.
        self.last_event: Callable[[], int] = lambda: 0
        self._hurry = asyncio.Event()
        self._asked: asyncio.Task[Any] | None = None  #: a client's request to stop the pair

    def interrupt(self) -> None:
        """The pair is to end; asked again, at once."""
        self.interrupts += 1
        (self._hurry if self.ended.is_set() else self.ended).set()

    async def end(self) -> None:
        """Nothing of the pair runs any more; where it could not be ended, `failure` says why."""
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
        """One attempt to stop the pair has come to its end, or is to be cut short by the next.

        A client's request cuts ours short; from then on it is waited for in its place.
        """
        if hurried.done():
            stop = asyncio.create_task(acts.stop(self.state, force=True))
            await asyncio.wait({stop})
            return stop
        stop = self._asked or asyncio.create_task(acts.stop(self.state, force=False))
        await asyncio.wait({stop, hurried}, return_when=asyncio.FIRST_COMPLETED)
        return stop

    async def begin(self, *, protect: bool) -> None:
        """Start the pair; a start that leaves no guest running ends the supervisor with `failure`.

        A guest that serves but could not be protected is kept: the keeper tries again.
        """
        try:
            await self._start({"protect": protect})
        except RunsAlone as error:
            log.error("%s", error.message)
        except ColoctlError as error:
            self.failure = error
            self.ended.set()

    def handlers(self) -> dict[str, Handler]:
        """By the names of `control.schema`."""
        acting = {
            "pair-start": self._start,
            "pair-failover": self._failover,
            "pair-protect": self._protect,
            "pair-unprotect": self._unprotect,
            "pair-switchover": self._switchover,
            "pair-stop": self._stop,
            "pair-set": self._set,
            "pair-checkpoint": self._checkpoint,
        }
        return {
            **{name: self._saying_why(name, act) for name, act in acting.items()},
            "query-pair": self._query_pair,
            "query-dump": self._query_dump,
            "query-explain": self._query_explain,
            "query-evidence": self._query_evidence,
            "query-history": self._query_history,
            "query-recording": self._query_recording,
            "query-plan": self._query_plan,
            "pair-pause": self._pause,
            "pair-resume": self._resume,
            "pair-fence-confirm": self._confirm_fence,
            "pair-verify": self._verify,
            "node-qmp": self._qmp,
        }

    def _saying_why(self, command: str, act: Handler) -> Handler:
        """Wrap ``act`` so that its client learns in a sentence what cut it short."""

        async def carried_out(arguments: Arguments) -> Any:
            try:
                return await act(arguments)
            except asyncio.CancelledError:
                name = self.state.spec.name
                if not (why := self.state.cut_short):
                    raise
                raise ColoctlError(
                    f"The {command.removeprefix('pair-')} of {name} was cut short: {why}",
                    hint=f"`coloctl status {name}` shows the pair as it is now",
                ) from None

        return carried_out

    async def _query_pair(self, arguments: Arguments) -> Any:
        return self.state.view().to_json()

    async def _query_dump(self, arguments: Arguments) -> Any:
        """Nothing is awaited between the two: no event is in both, and none in neither."""
        return {"seq": self.last_event(), "records": evidence.records(self.state)}

    async def _query_explain(self, arguments: Arguments) -> Any:
        return evidence.explanation(self.state)

    async def _query_evidence(self, arguments: Arguments) -> Any:
        return evidence.evidence(self.state)

    async def _query_history(self, arguments: Arguments) -> Any:
        past = history.read(self.state.ground.folder / history.FILE)
        return {"failovers": list(past.failovers), "unreadable": past.unreadable}

    async def _query_recording(self, arguments: Arguments) -> Any:
        return self.state.recorders[arguments["node"]].lines()

    async def _query_plan(self, arguments: Arguments) -> Any:
        state = self.state
        primary = state.seat_of(Role.PRIMARY)
        return dialogue(
            state.spec,
            state.ground,
            arguments["verb"],
            state.protection,
            arguments.get("to"),
            primary=primary.name if primary else "a",
            delay_ms=state.delay_ms,
            tuning=state.tuning.changed(arguments.get("settings", {}), state.spec.name),
            memory=arguments.get("memory"),
        )

    async def _start(self, arguments: Arguments) -> Any:
        await acts.start(
            self.state,
            self.supervisor.watch,
            self.supervisor.entered,
            protected=arguments.get("protect", True),
            begin_on=arguments.get("from"),
        )
        return await self._seen()

    async def _protect(self, arguments: Arguments) -> Any:
        self.state.want_protection(True)
        await acts.reprotect(self.state, self.supervisor.watch, self.supervisor.entered)
        return await self._seen()

    async def _unprotect(self, arguments: Arguments) -> Any:
        await acts.unprotect(self.state)
        return await self._seen()

    async def _switchover(self, arguments: Arguments) -> Any:
        timeline = await acts.switchover(
            self.state,
            self.supervisor.watch,
            self.supervisor.entered,
            force=arguments.get("force", False),
        )
        await self._seen()
        return timeline.to_json()

    async def _seen(self) -> Any:
        """The pair as it is right now, not as the last tick of the loop saw it."""
        seats = self.state.seats.values()
        await asyncio.gather(*(seat.observe(OBSERVE_DEADLINE_S) for seat in seats))
        return self.state.view().to_json()

    async def _failover(self, arguments: Arguments) -> Any:
        timeline = await acts.failover(
            self.state, arguments.get("to"), force=arguments.get("force", False)
        )
        await self._seen()
        return timeline.to_json()

    async def _pause(self, arguments: Arguments) -> Any:
        return self._set_paused(True)

    async def _resume(self, arguments: Arguments) -> Any:
        return self._set_paused(False)

    def _set_paused(self, paused: bool) -> dict[str, bool]:
        before = self.state.paused
        if paused is not before:
            self.state.pause(paused)
            self.state.emit(PauseChanged(paused=paused))
        return {"paused": paused, "before": before}

    async def _confirm_fence(self, arguments: Arguments) -> Any:
        acts.confirm_fence(self.state, arguments["node"])
        return self.state.view().to_json()

    async def _stop(self, arguments: Arguments) -> Any:
        self._asked = mine = asyncio.current_task()
        try:
            how = await acts.stop(
                self.state,
                force=arguments.get("force", False),
                timeout_s=arguments.get("timeout-s", acts.SHUTDOWN_DEADLINE_S),
            )
        finally:
            if self._asked is mine:  # a later request may have taken its place
                self._asked = None
        self.ended.set()
        return {"how": how}

    async def _set(self, arguments: Arguments) -> Any:
        settings = {arguments["name"]: arguments["value"], **arguments.get("more", {})}
        before = await acts.set_values(self.state, settings)
        changed = [
            {"name": name, "before": before[name], "after": self.state.tuning[name]}
            for name in settings
        ]
        return {**changed[0], "changed": changed}

    async def _checkpoint(self, arguments: Arguments) -> Any:
        view = await acts.checkpoint(self.state)
        return {"count": view.checkpoints.count, "pause-ms": view.checkpoints.last_pause_ms}

    async def _verify(self, arguments: Arguments) -> Any:
        memory = arguments.get("memory")
        return (await self.supervisor.verifying.verify(memory=memory)).to_json()

    async def _qmp(self, arguments: Arguments) -> Any:
        vm = self.state.seats[arguments["node"]].vm
        if vm is None:
            raise NotProtected(
                f"Node {arguments['node']} has no running QEMU.",
                hint=f"`coloctl status {self.state.spec.name}` shows where the guest runs",
            )
        oob = arguments.get("oob", False)
        command = Command(arguments["execute"], arguments.get("arguments", {}), oob=oob)
        road = vm.monitor.rescue if oob else vm.monitor.execute
        return await road(command, arguments.get("timeout-s", QMP_DEADLINE_S))
