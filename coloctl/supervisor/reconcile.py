"""Decide what becomes of a pair whose supervisor died: belief against observation; pure.

Called by `supervisor.adopt`, with what `supervisor.discovery` found; `supervisor.moves` carries the
plan out. `supervisor.lost_journal` makes the belief where the journal has none. A process is
named by its `host.base.Identity`.

Invariants, over everything that can be believed and found: no plan leaves two guests running. A
secondary is promoted only where the journal has a complete checkpoint in this generation and its
disk missed nothing. A guest that runs is never ended unless its end was under way. A QEMU whose
machine is out of reach is not known: it never counts as dead, and no plan rests on its state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from coloctl.host.base import Identity
from coloctl.model import event
from coloctl.model.event import Record
from coloctl.model.pair import NODES, NodeName, Role, other
from coloctl.model.protection import Protection
from coloctl.model.qapi import COLOMode, MigrationStatus, RunState
from coloctl.model.tuning import SETTINGS
from coloctl.model.verified import Verified

#: States in which the secondary holds a complete checkpoint, or held one when it was lost.
_PROTECTED = frozenset({Protection.COLO, Protection.FAILOVER})
_JOINING = frozenset({Protection.RESYNC, Protection.MIGRATING})


@dataclass(frozen=True)
class KnownQemu:
    """The QEMU of a node as the journal has it: its role now and which process it is."""

    role: Role
    identity: Identity
    leader: Identity | None = None  #: the process that was launched, where that is another one
    ended: bool = False  #: the journal has a proof that it is gone
    unit: str = ""  #: why it has no unit of systemd, a sentence


@dataclass(frozen=True)
class Belief:
    """The statement of a dead supervisor's journal about its pair.

    Note the difference: `Belief` is what was written before; `FoundQemu` is what was found now.
    """

    protection: Protection = Protection.DOWN
    reason: str = ""
    generation: int = 0
    since_s: float | None = None  #: monotonic; comparable within one boot
    exposed_since_s: float | None = None  #: as `since_s`
    acts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  #: begun and not ended
    launches: Mapping[NodeName, KnownQemu] = field(default_factory=dict)
    #: QEMUs that were given up while their machine was out of reach, and are not proven gone.
    left: Mapping[NodeName, KnownQemu] = field(default_factory=dict)
    survivor: NodeName | None = None  #: asked for by the failover under way
    unfenced: NodeName | None = None  #: as `Observation.unfenced`
    missed: frozenset[NodeName] = frozenset()  #: their disks missed a write of the guest
    diverged: frozenset[NodeName] = frozenset()  #: their guests are other ones than the primary's
    #: Settings of an operator that the pair file does not have, by name.
    settings: Mapping[str, Any] = field(default_factory=dict)
    pace_ms: int | None = None  #: the delay that adaptive mode had chosen
    paused: bool = False
    protection_wanted: bool = False  #: a guest that runs alone is to be protected again
    verified: Verified | None = None  #: what the last verification of the disks found
    covered: bool = False  #: a checkpoint followed the guest's first connection
    boots: Mapping[NodeName, int] = field(default_factory=dict)  #: as `event.BOOTS`


def believe(records: Iterable[Record]) -> Belief:
    """Compute the belief to which ``records``, oldest first, amount."""
    everything = tuple(records)
    state, generation = event.last_state(everything), event.last_generation(everything)
    acts: dict[str, dict[str, Any]] = {}
    for intent in event.open_intents(everything):
        acts[intent.act] = {**acts.get(intent.act, {}), **intent.data}
    settings = event.last_settings(everything)
    return Belief(
        protection=Protection(state.after) if state else Protection.DOWN,
        reason=str(state.data.get("reason", "")) if state else "",
        generation=(generation.generation or 0) if generation else 0,
        since_s=state.mono_s if state else None,
        exposed_since_s=state.data.get(event.EXPOSED_SINCE) if state else None,
        acts=acts,
        launches=_launches(everything),
        left=_qemus(event.last_left(everything), event.LEFT_BEHIND),
        unfenced=_unfenced(state),
        survivor=_survivor(acts.get("failover", {})),
        missed=_missed(everything, diverged=False),
        diverged=_missed(everything, diverged=True),
        settings={name: settings[name] for name in SETTINGS if name in settings},
        pace_ms=settings.get(event.PACE),
        paused=bool(settings.get(event.PAUSED, False)),
        protection_wanted=bool(settings.get(event.PROTECTION_WANTED, False)),
        verified=_verified(settings.get(event.VERIFIED)),
        covered=settings.get(event.FIRST_CONNECTION) == event.COVERED,
        boots={_node(name): int(mark) for name, mark in settings.get(event.BOOTS, {}).items()},
    )


def _qemus(records: Iterable[Record], role: str) -> dict[NodeName, KnownQemu]:
    """Read the QEMU of each node from ``records``, which have its role under the key ``role``."""
    return {
        _node(one.node): KnownQemu(Role(one.data[role]), Identity.from_json(one.data), _leader(one))
        for one in records
    }


def _launches(records: Iterable[Record]) -> dict[NodeName, KnownQemu]:
    """Read the latest QEMU of each node, and whether its end is proven."""
    everything = tuple(records)
    ended = {one.node: Identity.from_json(one.data) for one in event.last_ended(everything)}
    launches = tuple(event.last_launches(everything))
    units = {one.node: str(one.data.get(event.NO_UNIT, "")) for one in launches}
    return {
        node: replace(one, ended=one.identity == ended.get(node), unit=units[node])
        for node, one in _qemus(launches, event.LAUNCHED).items()
    }


def _leader(record: Record) -> Identity | None:
    found = record.data
    return Identity.from_json(found[event.LEADER]) if event.LEADER in found else None


def _verified(found: Any) -> Verified | None:
    """Return the last verification; None where there was none, or in a form that is not read."""
    try:
        return None if found is None else Verified.from_json(found)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _missed(records: Iterable[Record], *, diverged: bool) -> frozenset[NodeName]:
    """Return nodes that may not survive: the disk missed a write, or the guest diverged."""
    return frozenset(
        _node(record.node)
        for record in event.last_misses(records)
        if (record.data[event.MISSED] == event.DIVERGENCE) is diverged
    )


def _node(name: str) -> NodeName:
    return next(node for node in NODES if node == name)


def _unfenced(state: Record | None) -> NodeName | None:
    name = state.data.get(event.UNFENCED) if state else None
    return _node(name) if name in NODES else None


def _survivor(failover: Mapping[str, Any]) -> NodeName | None:
    chosen = failover.get("to")
    return _node(chosen) if chosen in NODES else None


@dataclass(frozen=True)
class FoundQemu:
    """A QEMU as it was found. ``None`` in the last three: it does not answer.

    ``known`` is False where its machine is out of reach. It counts as alive then.
    """

    role: Role
    alive: bool
    known: bool = field(default=True, kw_only=True)
    held: bool = False  #: it was started with its guest stopped
    run_state: RunState | None = None
    migration: MigrationStatus | None = None
    colo_mode: COLOMode | None = None

    @property
    def in_colo(self) -> bool:
        return self.alive and self.colo_mode in (COLOMode.PRIMARY, COLOMode.SECONDARY)

    @property
    def certainty(self) -> int:
        """The certainty that it lives: 2 where it does, 1 where it may, 0 where it is dead."""
        return self.alive + (self.alive and self.known)

    @property
    def never_ran(self) -> bool:
        """True where QEMU itself reports that its guest has not executed one instruction."""
        return self.held and self.run_state is RunState.PRELAUNCH

    @property
    def promoted(self) -> bool:
        """True where it runs a guest of its own, although it was launched to receive one."""
        runs = self.run_state in (RunState.RUNNING, RunState.IO_ERROR)
        return self.alive and runs and not self.in_colo


ABSENT = FoundQemu(Role.NONE, alive=False)


class Move(StrEnum):
    """The ways in which a new supervisor goes on with what it found."""

    ADOPT_COLO = "adopt-colo"  #: the pair is whole
    ADOPT_ALONE = "adopt-alone"  #: the guest of ``node`` runs unprotected, as it should
    FINISH_FAILOVER = "finish-failover"  #: ``node`` survives, or the one that can; not ``lost``
    ROLL_BACK_PROTECT = "roll-back-protect"  #: the secondary is given up, ``node`` runs on alone
    HAND_OVER = "hand-over"  #: something is lost; the loop decides about it as it always does
    END = "end"  #: a stop was under way, or a start whose guest never ran
    GONE = "gone"  #: no guest of the pair runs any more


@dataclass(frozen=True)
class MovePlan:
    """A move, and the nodes that it is about."""

    move: Move
    node: NodeName | None = None
    lost: NodeName | None = None  #: to be fenced, dead already or not
    again: bool = False  #: the start, or protection, that was cut short is done again

    def sentence(self) -> str:
        """Return what is done with the pair, for people."""
        node = self.node or "that is left"
        sentences = {
            Move.ADOPT_COLO: "The pair is whole and stays protected.",
            Move.ADOPT_ALONE: f"The guest runs on unprotected on node {node}.",
            Move.FINISH_FAILOVER: f"The failover is finished: node {node} survives.",
            Move.ROLL_BACK_PROTECT: f"Protection is undone; the guest runs alone on node {node}.",
            Move.HAND_OVER: "Something is lost; it is diagnosed and decided as in any pair.",
            Move.END: "What was launched is ended.",
            Move.GONE: "No guest of the pair runs any more; what it left is swept.",
        }
        return sentences[self.move] + (" The start is done again." if self.again else "")


#: Acts that bring a secondary.
_BRINGING = frozenset({"start", "protect"})


def reconcile(belief: Belief, found: Mapping[NodeName, FoundQemu]) -> MovePlan:
    """Return the one plan for ``belief`` and the QEMUs ``found`` on both nodes; never raises.

    A node that is not known is left to the loop, which observes it and decides as in any pair. Two
    things go on. One is a stop that was asked for. The other is a guest that is known to run alone:
    a secondary beside it that is not known is left behind, and ended when its machine is back.

    Example: node b's machine is off, and the journal believes in COLO. The plan is to hand over.
    """
    again = "start" in belief.acts
    if "stop" in belief.acts:
        return MovePlan(Move.END)
    if not any(one.alive for one in found.values()):
        fresh = belief.protection is Protection.DOWN and again
        return MovePlan(Move.END, again=True) if fresh else MovePlan(Move.GONE)
    primary = _primary(found)
    if belief.protection in _PROTECTED or belief.protection is Protection.FAILED:
        return _with_secondary(belief, found, primary)
    if primary is None or not found[primary].alive:
        return _without_primary(found)
    return _alone(belief, found, primary)


def _primary(found: Mapping[NodeName, FoundQemu]) -> NodeName | None:
    """Return the living holder of the role, or one that may live, or else a dead one."""
    holders = [node for node in NODES if found[node].role is Role.PRIMARY]
    return max(holders, key=lambda node: found[node].certainty, default=None)


def _without_primary(found: Mapping[NodeName, FoundQemu]) -> MovePlan:
    """End a secondary that never held a complete checkpoint; keep one that runs a guest of its own.

    The journal does not know of such a promotion. It serves clients all the same.
    """
    promoted = [node for node in NODES if found[node].promoted]
    if len(promoted) == 1:
        return MovePlan(Move.ADOPT_ALONE, promoted[0])
    known = all(one.known for one in found.values())
    return MovePlan(Move.GONE) if known else MovePlan(Move.HAND_OVER)


def _alone(belief: Belief, found: Mapping[NodeName, FoundQemu], primary: NodeName) -> MovePlan:
    """Plan for a primary that lives beside a secondary that is of no worth yet."""
    again, secondary = not _BRINGING.isdisjoint(belief.acts), other(primary)
    one, two = found[primary], found[secondary]
    if not one.known:
        return MovePlan(Move.HAND_OVER)
    if one.never_ran and two.known:
        if two.promoted:
            return MovePlan(Move.ROLL_BACK_PROTECT, secondary, primary)
        return MovePlan(Move.END, again=again)
    joining = again or belief.protection in _JOINING
    if joining or one.never_ran or (two.alive and two.known):
        return MovePlan(Move.ROLL_BACK_PROTECT, primary, secondary, again=again)
    return MovePlan(Move.ADOPT_ALONE, primary)


def _with_secondary(
    belief: Belief, found: Mapping[NodeName, FoundQemu], primary: NodeName | None
) -> MovePlan:
    """Plan for a pair in COLO, FAILOVER or FAILED of which at least one QEMU lives."""
    if primary is None:
        return MovePlan(Move.HAND_OVER)
    one, two = found[primary], found[other(primary)]
    if one.alive and one.known and two.promoted:
        # Nothing of coloctl does that; it must not last in any state.
        ended = MovePlan(Move.FINISH_FAILOVER, primary, other(primary))
        failed = belief.protection is Protection.FAILED
        return MovePlan(Move.HAND_OVER, lost=other(primary)) if failed else ended
    if belief.protection is Protection.COLO and one.in_colo and two.in_colo:
        return MovePlan(Move.ADOPT_COLO, primary)
    if belief.protection is Protection.FAILOVER and "failover" in belief.acts:
        return _finish(belief, found, primary)
    return MovePlan(Move.HAND_OVER)


def _finish(belief: Belief, found: Mapping[NodeName, FoundQemu], primary: NodeName) -> MovePlan:
    """Plan the end of a failover that was under way.

    The node that is left survives; of two, the one that was chosen for it. One that is not known
    never does.
    """
    living = [node for node in NODES if found[node].alive]
    survivor = living[0] if len(living) == 1 else belief.survivor
    unsure = not all(one.known for one in found.values())
    if unsure and (survivor is None or not found[survivor].known):
        return MovePlan(Move.HAND_OVER)
    if (
        survivor is not None
        and survivor != primary
        and survivor in (belief.missed | belief.diverged)
    ):
        return MovePlan(Move.HAND_OVER)
    return MovePlan(Move.FINISH_FAILOVER, survivor, None if survivor is None else other(survivor))
