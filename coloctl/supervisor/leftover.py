"""Describe a QEMU that a supervisor left, and what can be typed about it, as sentences.

Called by `supervisor.leftovers`, which finds and ends such QEMUs, and by `control.daemon.spawn`,
`cli.verbs.stop` and `cli.reach`, which show them; reads the `journal` of the pair's folder.

Invariant: a QEMU with a doubt is never described as one that runs, nor as one that is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coloctl.errors import ColoctlError
from coloctl.host.base import Identity
from coloctl.journal import replay
from coloctl.model import event
from coloctl.model.event import Record
from coloctl.model.pair import Role
from coloctl.supervisor.started import SOURCE

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Leftover:
    """A QEMU that a supervisor launched, as its journal has it."""

    node: str
    role: str
    identity: Identity
    leader: Identity | None = None  #: the process that was launched, where that is another one
    doubt: str = ""  #: why it is not known whether it lives; it counts as living then
    #: The sockets of its monitors have no path any more.
    cut_off: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"the {self.role} on node {self.node} (process {self.identity.pid})"

    def key(self) -> Key:
        """Return the values by which this QEMU differs from every other one of the pair."""
        return _key(self.node, self.identity)


#: A QEMU among all of a journal: the same pid and start time may be another one's after a boot.
Key = tuple[str, Identity, str, str]


def _key(node: str, who: Identity) -> Key:
    return node, who, who.boot, who.machine


def launched(records: Iterable[Record]) -> tuple[Leftover, ...]:
    """List every QEMU that was launched, oldest first, with the role that it had last."""
    found: dict[Key, Leftover] = {}
    for record in records:
        if event.LAUNCHED in record.data:
            who, data = Identity.from_json(record.data), record.data
            first = Identity.from_json(data[event.LEADER]) if event.LEADER in data else None
            one = Leftover(record.node, str(data[event.LAUNCHED]), who, first)
            found[one.key()] = one
    return tuple(found.values())


def ended(records: Iterable[Record]) -> frozenset[Key]:
    """Return the keys of the QEMUs of whose end the journal has a proof."""
    proofs = [record for record in records if event.ENDED in record.data]
    return frozenset(_key(one.node, Identity.from_json(one.data)) for one in proofs)


def told(folder: Path, found: Sequence[Leftover]) -> str:
    """Return a sentence on what of the pair in ``folder`` lives without a supervisor, or may."""
    sure = [one for one in found if not one.doubt]
    doubted = [f" It is not known whether {one} still runs: {one.doubt}" for one in found
               if one.doubt]  # fmt: skip
    names = " and ".join(map(str, sure))
    runs = f", but {names} still {'runs' if len(sure) == 1 else 'run'}" if sure else ""
    serves = any(one.role == Role.PRIMARY for one in sure)
    guest = ": its guest may be serving clients, and nothing watches it" if serves else ""
    return f"The supervisor of pair {folder.name} is gone{runs}{guest}.{''.join(doubted)}"


def advice(folder: Path, found: Sequence[Leftover]) -> str:
    """Return what can be typed about ``found``, QEMUs of the pair in ``folder``."""
    end = f"{(stop := f'`coloctl stop {folder.name} --force`')} ends it"
    if reachable(found):
        doubted = [one for one in found if one.doubt]
        gone = f"; {_without(stop, doubted)}" if doubted else ""
        return f"`coloctl start {source_of(folder)} --adopt` takes over what is left, {end}{gone}"
    return (
        "its monitors' sockets were removed, so it cannot be taken over: shut the guest down "
        f"from inside; {end}"
    )


def reachable(found: Iterable[Leftover]) -> bool:
    """Return whether the monitors of all of ``found`` still have their place, as far as known."""
    return not any(one.cut_off for one in found)


def source_of(folder: Path) -> str:
    """Return the pair file that the pair in ``folder`` was started from.

    "SPEC" where none is known.

    The link beside the journal names it, or else the journal.
    """
    with contextlib.suppress(OSError):
        return str((folder / SOURCE).readlink())
    with contextlib.suppress(ColoctlError):
        settings = event.last_settings(replay(folder / JOURNAL).records)
        return str(settings.get(event.SOURCE, "SPEC"))
    return "SPEC"


def ending(folder: Path, found: Sequence[Leftover]) -> str:
    """Return what can be typed to end ``found``, whose machines are out of reach."""
    stop = f"`coloctl stop {folder.name} --force`"
    return f"{stop} ends it once its machine can be reached; {_without(stop, found)}"


def _without(stop: str, found: Iterable[Leftover]) -> str:
    """Return what can be typed where the machines of ``found`` never come back."""
    roles = {one.node: one.role for one in found}
    nodes = "".join(f" --without {node}" for node in sorted(roles))
    off = " --switched-off" if Role.PRIMARY in roles.values() else ""
    gone = "that machine is" if len(roles) == 1 else "those machines are"
    return f"`{stop[1:-1]}{nodes}{off}` where {gone} gone for good"
