"""Define the records of a pair's journal, and find in them what a new supervisor must know.

`supervisor/` writes the records through `journal`; `supervisor.reconcile` and
`chaos.evidence.states` read them. A record says what the supervisor meant to do, did, decided or
saw. Pure.

Invariant: `worth_keeping` leaves out no record by which a restarted supervisor would decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from coloctl.model.pair import Role
from coloctl.model.tuning import SETTINGS


class Kind(StrEnum):
    """Reason for which a record was written."""

    INTENT = "intent"  #: an act, or a step that cannot be undone, is about to begin
    OUTCOME = "outcome"  #: how an act or step ended
    STATE = "state"  #: the protection table was applied
    OBSERVATION = "observation"  #: something was seen without being asked for
    NOTE = "note"  #: for people only

    @property
    def durable(self) -> bool:
        """True where a restarted supervisor decides by it: on disk before anything follows."""
        return self in _DURABLE


#: Keys of ``Record.data`` whose last value outlives the supervisor.
PAUSED = "paused"
FIRST_CONNECTION = "first-connection"
PROTECTION_WANTED = "protection-wanted"
PACE = "pace"  #: the delay that adaptive mode has chosen, milliseconds
#: Where each console was when the guest began to boot, by node; empty when it has booted.
BOOTS = "boots-from"
#: Where the pair file lies that the pair was started from.
SOURCE = "pair-file"
#: What the last verification found.
VERIFIED = "verified"
LASTING = (
    *SETTINGS, PAUSED, PROTECTION_WANTED, FIRST_CONNECTION, PACE, BOOTS, SOURCE, VERIFIED,
)  # fmt: skip
#: What stands under `FIRST_CONNECTION` when nothing is left to do about it.
COVERED = "covered by a checkpoint"
#: In the data of a state: the node for whose death a failed fence has no proof.
UNFENCED = "unfenced"
#: In the data of a state: since when a guest has run without protection, monotonic seconds.
EXPOSED_SINCE = "exposed-since"
#: The role of a QEMU that was launched or promoted; its pid and start time stand beside it.
LAUNCHED = "launched"
#: The process that was launched, where the QEMU is another one.
LEADER = "leader"
#: Why the QEMU that was launched has no unit of systemd; a sentence.
NO_UNIT = "no-unit"
#: The role of a QEMU that was given up while its machine was out of reach; its pid and start time
#: stand beside it. Empty once that QEMU is proven gone.
LEFT_BEHIND = "left-behind"
#: How a QEMU was proven gone; its pid and start time stand beside it.
ENDED = "ended"
#: The write that a node's disk missed.
MISSED = "missed"
#: What stands under `MISSED` where it is not a write but the whole guest.
DIVERGENCE = "divergence"
#: Why the generation is not beside the images of a node.
GENERATION_NOT_KEPT = "generation-not-kept"
#: The fact after which the first connection is waited for again.
ENTERED_COLO = "checkpoint-completed"

_DURABLE = frozenset({Kind.INTENT, Kind.OUTCOME, Kind.STATE})


@dataclass(frozen=True)
class Record:
    """One line of the journal. The journal itself sets ``seq``, ``at`` and ``mono_s``."""

    kind: Kind
    act: str = ""
    step: str = ""
    node: str = ""
    generation: int | None = None
    before: str = ""
    fact: str = ""
    after: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    seq: int = 0  #: grows by one per record
    at: str = ""  #: wall clock, ISO 8601 in UTC; for people, never for decisions
    mono_s: float = 0.0  #: monotonic seconds; comparable within one boot of the machine

    @property
    def durable(self) -> bool:
        return self.kind.durable

    def to_json(self) -> dict[str, Any]:
        """Return the record as a document, without its empty fields."""
        document = {name: value for name, value in asdict(self).items() if value not in _EMPTY}
        return {"seq": self.seq, "at": self.at, "mono_s": self.mono_s, **document}

    @classmethod
    def from_json(cls, document: object) -> Record:
        """Read the record that `to_json` wrote; raises ValueError with a sentence otherwise."""
        if not isinstance(document, dict):
            raise ValueError("a record must be a JSON object")
        for name, value in document.items():
            if name not in _TYPES:
                raise ValueError(f"a record has no field {name}")
            if isinstance(value, bool) or not isinstance(value, _TYPES[name]):
                raise ValueError(f"the field {name} cannot be {repr(value)[:40]}")
            if isinstance(value, int | float) and not 0 <= value <= _NUMBER_MAX:
                raise ValueError(f"the field {name} is no number between 0 and 2^53")
        if "kind" not in document or "seq" not in document:
            raise ValueError("a record needs the fields kind and seq")
        _require_process(document.get("data", {}))
        return cls(**{**document, "kind": Kind(document["kind"])})


def _require_process(data: Mapping[str, Any]) -> None:
    """Require that a launch names a role, a pid and a start time. Raises ValueError."""
    named = [data[name] for name in (LAUNCHED, LEFT_BEHIND) if name in data]
    if not named or named == [""] == [data.get(LEFT_BEHIND)]:
        return
    numbers = [data.get(name) for name in ("pid", "start-time")]
    if not all(name in tuple(Role) for name in named) or not all(
        type(number) is int and 0 <= number <= _NUMBER_MAX for number in numbers
    ):
        raise ValueError("a launch must name a role, a pid and a start time")


#: What JSON's readers hold exactly; no number here comes near.
_NUMBER_MAX = 2**53

_EMPTY: tuple[object, ...] = ("", None, {})
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("kind", "act", "step", "node", "before", "fact", "after", "at"), str),
    **dict.fromkeys(("seq", "generation"), int),
    "mono_s": (int, float),
    "data": dict,
}


def open_intents(records: Iterable[Record]) -> tuple[Record, ...]:
    """Find the intents without an outcome: the work of a supervisor that died during it.

    An outcome closes the intent of its act and step; one without a step closes the whole act. Of
    an intent that was repeated the latest counts.
    """
    still_open: dict[tuple[str, str], Record] = {}
    for record in records:
        if record.kind is Kind.INTENT:
            still_open.pop((record.act, record.step), None)
            still_open[record.act, record.step] = record
        elif record.kind is Kind.OUTCOME:
            for act, step in list(still_open):
                if act == record.act and record.step in {"", step}:
                    del still_open[act, step]
    return tuple(still_open.values())


def last_state(records: Iterable[Record]) -> Record | None:
    """Find the last application of the protection table."""
    last = None
    for record in records:
        if record.kind is Kind.STATE:
            last = record
    return last


def last_generation(records: Iterable[Record]) -> Record | None:
    """Find the latest record that names the highest generation."""
    last = None
    for record in records:
        if record.generation is None:
            continue
        if last is None or record.generation >= (last.generation or 0):
            last = record
    return last


def last_launches(records: Iterable[Record]) -> tuple[Record, ...]:
    """Find the latest QEMU of each node, oldest first: its pid, its start time, its role.

    A QEMU that was promoted has a record of its own for that.
    """
    last = {record.node: record for record in records if LAUNCHED in record.data}
    return tuple(sorted(last.values(), key=lambda record: record.seq))


def last_left(records: Iterable[Record]) -> tuple[Record, ...]:
    """Find the QEMU of each node that was left behind and is not proven gone, oldest first.

    No other record ends that state, not even a later launch: only a proof does.
    """
    left: dict[str, Record] = {}
    for record in records:
        if LEFT_BEHIND not in record.data:
            continue
        if record.data[LEFT_BEHIND]:
            left[record.node] = record
        else:
            left.pop(record.node, None)
    return tuple(sorted(left.values(), key=lambda record: record.seq))


def last_ended(records: Iterable[Record]) -> tuple[Record, ...]:
    """Find the latest proof of each node that a QEMU of it is gone, oldest first."""
    last = {record.node: record for record in records if ENDED in record.data}
    return tuple(sorted(last.values(), key=lambda record: record.seq))


def last_misses(records: Iterable[Record]) -> tuple[Record, ...]:
    """Find the last record of each node whose disk missed a write, or whose guest has diverged.

    What happened before the node's latest QEMU was launched does not count.
    """
    missed: dict[str, Record] = {}
    for record in records:
        if LAUNCHED in record.data:
            missed.pop(record.node, None)
        elif MISSED in record.data:
            missed[record.node] = record
    return tuple(missed.values())


def _last_settings(records: Iterable[Record]) -> dict[str, Record]:
    """Find the last record of each setting that a person or the pair's life has changed."""
    last: dict[str, Record] = {}
    for record in records:
        if record.kind is Kind.STATE and record.fact == ENTERED_COLO:
            last.pop(FIRST_CONNECTION, None)
        last |= {name: record for name in LASTING if name in record.data}
    return last


def last_settings(records: Iterable[Record]) -> dict[str, Any]:
    """Return the last value of each of `LASTING`; those that never had one are left out."""
    return {name: record.data[name] for name, record in _last_settings(records).items()}


def worth_keeping(records: Iterable[Record]) -> tuple[Record, ...]:
    """Select the fewest records from which a restarted supervisor decides as it would from all.

    An intent that is over and only kept for its generation becomes a note: without its outcome
    beside it, it would look open again.
    """
    everything = tuple(records)
    kept = {record.seq: record for record in last_launches(everything)}
    generation, state = last_generation(everything), last_state(everything)
    if generation is not None:
        over = generation.kind is Kind.INTENT
        kept[generation.seq] = replace(generation, kind=Kind.NOTE) if over else generation
    if state is not None:
        kept[state.seq] = state
    kept |= {record.seq: record for record in last_left(everything)}
    kept |= {record.seq: record for record in last_ended(everything)}
    kept |= {record.seq: record for record in last_misses(everything)}
    kept |= {record.seq: record for record in _last_settings(everything).values()}
    kept |= {record.seq: record for record in open_intents(everything)}
    return tuple(kept[seq] for seq in sorted(kept))
