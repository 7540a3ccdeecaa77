"""Write and read the disk record of a node: one checked line of JSON; pure.

The same record is kept in two places: in the companion file ``IMAGE.generation`` beside the first
image, and in the machine's registry. Used by `colo.registry`, which stores it, by
`colo.generation`, which writes it, and by `colo.equal_disks`; `colo.weigh` compares both places
with the disks that are there now. A device has no companion file; its record is in the registry
alone.

Invariant: bytes are a record, no record, or trouble with a sentence. Damage never becomes another
record. Disks of which more may be known than can be read are in doubt, and never taken for old or
new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from coloctl.model.disk import DiskIdentity
from coloctl.model.pair import NODES, NodeName
from coloctl.reading import read_json
from coloctl.sealed import NUMBER_MAX

#: A record has some hundred bytes; overlays and many disks add a few hundred each.
BYTES_MAX = 64 * 1024
#: Far beyond any number of failovers, and exact in every reader of JSON.
GENERATION_MAX = NUMBER_MAX


class Worth(StrEnum):
    """The part of their generation that a node's disks hold."""

    IN_SYNC = "in-sync"  #: all of it: the guest ran on them
    FOLLOWING = "following"  #: all of it, as long as their node was the secondary
    DIVERGED = "diverged"  #: the guest went on without them
    RESYNC_TARGET = "resync-target"  #: half of a copy
    OVERLAY_PENDING = "overlay-pending"  #: all of it, but only with the overlays that are named


#: The states that a guest may begin with; `OVERLAY_PENDING` only after its overlays were committed.
WHOLE = frozenset({Worth.IN_SYNC, Worth.FOLLOWING, Worth.OVERLAY_PENDING})

Overlays = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class DiskRecord:
    """The record about the disks of one node, as it is kept in one place.

    Note the difference: a `DiskRecord` is what one place holds; a `Companion` is what follows from
    both places for the disks that are there now.
    """

    pair: str
    node: NodeName
    generation: int = 0
    state: Worth = Worth.IN_SYNC
    serial: int = 0  #: grows with every record about these disks; 0: the form of an earlier coloctl
    beside: int = 0  #: in the registry: the serial that is known to lie beside the image
    images: Mapping[str, DiskIdentity] = field(default_factory=dict)  #: by disk id
    #: Per disk id, the overlays that the image does not hold yet: paths, the active one first.
    overlays: Overlays = field(default_factory=dict)

    @property
    def old_form(self) -> bool:
        """True if an earlier coloctl or a person wrote it: it has neither checksum nor identity."""
        return self.serial == 0


_OLD_KEYS = {"pair", "node", "generation", "state"}
_NEW_KEYS = _OLD_KEYS | {"format", "serial", "beside", "images", "overlays", "checksum"}
FORMAT = 2


def render(record: DiskRecord) -> bytes:
    """Write ``record`` as one line of JSON with its checksum."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "pair": record.pair,
        "node": record.node,
        "generation": record.generation,
        "state": str(record.state),
        "serial": record.serial,
        "beside": record.beside,
        "images": {disk: identity.to_json() for disk, identity in record.images.items()},
        "overlays": {disk: list(found) for disk, found in record.overlays.items()},
    }
    document["checksum"] = _checksum(document)
    return json.dumps(document).encode() + b"\n"


def _checksum(document: Mapping[str, Any]) -> str:
    """Compute the checksum over all keys but its own; the order of the keys does not matter."""
    plain = {key: value for key, value in document.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def parse(content: bytes, pair: str, node: NodeName) -> DiskRecord:
    """Read a record that `render` or an earlier coloctl wrote; raises ValueError with a sentence.

    ``pair`` and ``node`` are used for a lone number, which names neither.
    """
    if not content.strip():
        raise ValueError("it is empty")
    found = read_json(content)
    if type(found) is int:
        return DiskRecord(pair, node, _number(found, "generation"))
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    if set(found) == _OLD_KEYS:
        return _common(found)
    if set(found) != _NEW_KEYS or found["format"] != FORMAT:
        raise ValueError("its keys are not those of a companion")
    if found["checksum"] != _checksum(found):
        raise ValueError("its checksum is wrong")
    return replace(
        _common(found),
        serial=_number(found["serial"], "serial"),
        beside=_number(found["beside"], "beside"),
        images={disk: DiskIdentity.from_json(one) for disk, one in _table(found, "images")},
        overlays={disk: _paths(paths) for disk, paths in _table(found, "overlays")},
    )


def _common(found: Mapping[str, Any]) -> DiskRecord:
    pair, node = found["pair"], found["node"]
    if not isinstance(pair, str) or node not in NODES:
        raise ValueError("it names no pair and node")
    try:
        state = Worth(found["state"])
    except ValueError:
        raise ValueError("it names no state of disks") from None
    return DiskRecord(pair, node, _number(found["generation"], "generation"), state)


def _number(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value <= GENERATION_MAX:
        raise ValueError(f"its {name} is no number between 0 and 2^53")
    return value


def _table(found: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    if not isinstance(found[key], dict):
        raise ValueError(f"its {key} are no table")
    return list(found[key].items())


def _paths(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise ValueError("its overlays are no lists of paths")
    return tuple(value)


@dataclass(frozen=True)
class CompanionRead:
    """The result of reading one of the two places: a record, none, or trouble."""

    path: str
    record: DiskRecord | None = None
    trouble: str = ""  #: the reason why it cannot be read: a sentence


@dataclass(frozen=True)
class Companion:
    """Knowledge about a node's disks, concluded from both places."""

    pair: str
    node: NodeName
    generation: int = 0
    state: Worth = Worth.IN_SYNC
    written: bool = False  #: a record about these very disks was found; else they are new
    overlays: Overlays = field(default_factory=dict)
    serial: int = 0  #: the highest that was found in either place
    doubt: str = ""  #: the reason why nothing is known of these disks: a sentence
    bound: int | None = None  #: with a doubt: the highest generation they can hold; None: any
    replaced: bool = False  #: with a doubt: disks that were known are gone, these have no record

    @property
    def held_guest(self) -> bool:
        """True if these disks may hold this guest's disks, so that a copy sends what differs.

        False for those of which the first and only record is that the guest ran on without them:
        nothing was copied to them yet.
        """
        return self.written and not (self.state is Worth.DIVERGED and self.serial == 1)

    def sentence(self) -> str:
        """Describe these disks as a sentence for an operator."""
        if self.doubt:
            return self.doubt
        states = {
            Worth.IN_SYNC: "whole",
            Worth.FOLLOWING: "those of a secondary",
            Worth.DIVERGED: "left behind by their guest, which ran on without them",
            Worth.RESYNC_TARGET: "half of a copy",
            Worth.OVERLAY_PENDING: "whole with their overlays, which are not merged yet",
        }
        return f"Node {self.node}'s disks, generation {self.generation}, are {states[self.state]}."


Companions = Mapping[NodeName, Companion]
