"""What is written about a node's disks, and what it is worth when it is read again. Pure.

The same word is kept in two places: in the companion ``IMAGE.generation`` beside the first image,
and in the machine's registry (`coloctl.colo.registry`). `weigh` compares both with the disks that
are there now. A device has nothing beside it; its word is in the registry alone.

Invariant: bytes are a word, no word, or trouble with a sentence; damage never becomes another word.
Disks of which more may be known than can be read are in doubt, and never taken for old or new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from coloctl.errors import PreconditionFailed
from coloctl.model.disk import DiskIdentity, Sameness, compare
from coloctl.model.pair import NODES, NodeName
from coloctl.reading import read_json
from coloctl.sealed import NUMBER_MAX

#: A word has some hundred bytes; overlays and many disks add a few hundred each.
BYTES_MAX = 64 * 1024
#: Far beyond any number of failovers, and exact in every reader of JSON.
GENERATION_MAX = NUMBER_MAX


class Worth(StrEnum):
    """What a node's disks hold of their generation."""

    IN_SYNC = "in-sync"  #: everything: the guest ran on them
    FOLLOWING = "following"  #: everything, as long as their node was the secondary
    DIVERGED = "diverged"  #: the guest went on without them
    RESYNC_TARGET = "resync-target"  #: half of a copy
    OVERLAY_PENDING = "overlay-pending"  #: everything, but only with the overlays that are named


#: What a guest may begin with; `OVERLAY_PENDING` only after its overlays were committed.
WHOLE = frozenset({Worth.IN_SYNC, Worth.FOLLOWING, Worth.OVERLAY_PENDING})

Overlays = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Word:
    """What is written about the disks of one node, in one place."""

    pair: str
    node: NodeName
    generation: int = 0
    state: Worth = Worth.IN_SYNC
    serial: int = 0  #: grows with every word about these disks; 0: as coloctl wrote it before
    beside: int = 0  #: in the registry: the serial that is known to lie beside the image
    images: Mapping[str, DiskIdentity] = field(default_factory=dict)  #: by disk id
    #: Per disk id, what the image lacks: paths of overlays, the one that the guest writes to first.
    overlays: Overlays = field(default_factory=dict)

    @property
    def old_form(self) -> bool:
        """It has neither checksum nor identity: an earlier coloctl or a person wrote it."""
        return self.serial == 0


_OLD_KEYS = {"pair", "node", "generation", "state"}
_NEW_KEYS = _OLD_KEYS | {"format", "serial", "beside", "images", "overlays", "checksum"}
FORMAT = 2


def render(word: Word) -> bytes:
    """Write ``word`` as one line of JSON with its checksum."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "pair": word.pair,
        "node": word.node,
        "generation": word.generation,
        "state": str(word.state),
        "serial": word.serial,
        "beside": word.beside,
        "images": {disk: identity.to_json() for disk, identity in word.images.items()},
        "overlays": {disk: list(found) for disk, found in word.overlays.items()},
    }
    document["checksum"] = _checksum(document)
    return json.dumps(document).encode() + b"\n"


def _checksum(document: Mapping[str, Any]) -> str:
    """Of everything but itself, whatever the order of the keys."""
    plain = {key: value for key, value in document.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def parse(content: bytes, pair: str, node: NodeName) -> Word:
    """Read what `render` wrote, or an earlier coloctl; raises ValueError with a sentence.

    ``pair`` and ``node`` are those of a lone number, which names neither.
    """
    if not content.strip():
        raise ValueError("it is empty")
    found = read_json(content)
    if type(found) is int:
        return Word(pair, node, _number(found, "generation"))
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


def _common(found: Mapping[str, Any]) -> Word:
    pair, node = found["pair"], found["node"]
    if not isinstance(pair, str) or node not in NODES:
        raise ValueError("it names no pair and node")
    try:
        state = Worth(found["state"])
    except ValueError:
        raise ValueError("it names no state of disks") from None
    return Word(pair, node, _number(found["generation"], "generation"), state)


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
    """What was found in one of the two places: a word, nothing, or trouble."""

    path: str
    word: Word | None = None
    trouble: str = ""  #: why it cannot be read: a sentence


@dataclass(frozen=True)
class Companion:
    """What is known of a node's disks, from both places."""

    pair: str
    node: NodeName
    generation: int = 0
    state: Worth = Worth.IN_SYNC
    written: bool = False  #: a word about these very disks was found; else they are new
    overlays: Overlays = field(default_factory=dict)
    serial: int = 0  #: the highest that was found in either place
    doubt: str = ""  #: why nothing is known of these disks: a sentence
    bound: int | None = None  #: with a doubt: the highest generation they can hold; None: any
    replaced: bool = False  #: with a doubt: disks that were known are gone, these have no word

    def sentence(self) -> str:
        """Say for people what these disks are."""
        if self.doubt:
            return self.doubt
        words = {
            Worth.IN_SYNC: "whole",
            Worth.FOLLOWING: "those of a secondary",
            Worth.DIVERGED: "left behind by their guest, which ran on without them",
            Worth.RESYNC_TARGET: "half of a copy",
            Worth.OVERLAY_PENDING: "whole with their overlays, which are not merged yet",
        }
        return f"Node {self.node}'s disks, generation {self.generation}, are {words[self.state]}."


Companions = Mapping[NodeName, Companion]


def weigh(
    pair: str,
    node: NodeName,
    now: Mapping[str, DiskIdentity],
    beside: CompanionRead | None,
    registered: CompanionRead,
) -> Companion:
    """Say what is known of the disks that are there ``now`` (by disk id) from both places.

    ``beside`` is None where nothing can lie beside the first disk. Raises `PreconditionFailed`
    where one place says that these very disks are another pair's. The rules, one per line, are the
    table in docs/architecture.md.
    """
    if registered.word and registered.word.pair != pair:
        if likeness(registered.word, now) in OTHERS:
            registered = CompanionRead(registered.path)  # another pair's disk lay there once
        else:
            _require_own(registered, pair, node)
    if beside and beside.word:
        _require_own(beside, pair, node)
    places = [place for place in (beside, registered) if place is not None]
    known = Companion(pair, node, serial=max((p.word.serial for p in places if p.word), default=0))
    ours = beside.word if beside else None
    theirs = registered.word
    if ours is None and theirs is None:
        troubled = [place for place in places if place.trouble]
        if not troubled:
            return known
        return replace(known, doubt=_unreadable(node, troubled[0]))
    if theirs is not None and (ours is None or ours.old_form):
        return _from_registry(known, now, places[0], registered, ours)
    assert ours is not None
    assert beside is not None
    return _from_beside(known, now, beside, registered, ours)


#: The disks that a word was written about are not there any more.
OTHERS = frozenset({Sameness.REPLACED, Sameness.GONE})


def likeness(word: Word, now: Mapping[str, DiskIdentity]) -> Sameness:
    """Say what the disks now are to those of ``word``: the worst that is true of any of them."""
    found = {compare(now[disk], known) for disk, known in word.images.items() if disk in now}
    order = (Sameness.GONE, Sameness.REPLACED, Sameness.MOVED)
    return next((one for one in order if one in found), Sameness.SAME)


def _require_own(place: CompanionRead, pair: str, node: NodeName) -> None:
    assert place.word is not None
    if place.word.pair != pair:
        raise PreconditionFailed(
            f"{place.path} says that node {node}'s disks belong to the pair {place.word.pair}.",
            hint=f"correct the image in the pair file, or remove {place.path} if they are {pair}'s",
        )


def _take(known: Companion, word: Word) -> Companion:
    return replace(
        known,
        generation=word.generation,
        state=word.state,
        written=True,
        overlays=word.overlays,
    )


def _doubt(known: Companion, bound: int | None, why: str, *, replaced: bool = False) -> Companion:
    return replace(known, doubt=f"{why}.", bound=bound, replaced=replaced)


def _unreadable(node: NodeName, place: CompanionRead) -> str:
    return f"It is not known what node {node}'s disks hold: {place.trouble}"


def _from_registry(
    known: Companion,
    now: Mapping[str, DiskIdentity],
    beside: CompanionRead,
    registered: CompanionRead,
    old: Word | None,
) -> Companion:
    """The registry speaks; beside the image is nothing, trouble, or a word of the old form."""
    word, node = registered.word, known.node
    assert word is not None
    alike = likeness(word, now)
    if old is not None:
        return _from_old(known, registered, word, old, alike)
    if alike is Sameness.SAME and not _went_on(beside, word):
        return _take(known, word)
    if beside.trouble:
        return replace(known, doubt=_unreadable(node, beside))
    was = f"generation {word.generation}"
    if alike is Sameness.SAME:
        return _doubt(known, None, f"{beside.path}, which was written for node {node}, is gone")
    if alike is Sameness.GONE:
        return _doubt(known, word.generation, f"Node {node}'s disks, {was}, are not there")
    why = f"Node {node}'s disks are not those of which {was} was written ({registered.path})"
    # A name that holds for one boot only cannot tell that the disk is another one.
    surely = alike is Sameness.REPLACED and all(disk.stable for disk in now.values())
    return _doubt(known, word.generation, why, replaced=surely)


def _went_on(beside: CompanionRead, word: Word) -> bool:
    """Whether a later word than a secondary's may have been beside the image only, now lost."""
    lost = beside.word is None and word.beside == word.serial
    return word.state is Worth.FOLLOWING and lost


def _from_old(
    known: Companion, registered: CompanionRead, word: Word, old: Word, alike: Sameness
) -> Companion:
    """Beside the image is a word without identity, so its generation decides."""
    if alike in OTHERS or old.generation > word.generation:
        return _take(known, old)
    if (old.generation, old.state) == (word.generation, word.state):
        return _take(known, word)
    return _doubt(
        known,
        max(old.generation, word.generation),
        f"Beside node {known.node}'s image generation {old.generation} ({old.state}) is written, "
        f"and in {registered.path} generation {word.generation} ({word.state})",
    )


def _from_beside(
    known: Companion,
    now: Mapping[str, DiskIdentity],
    beside: CompanionRead,
    registered: CompanionRead,
    ours: Word,
) -> Companion:
    """A word lies beside the image; the registry may know better."""
    node, theirs = known.node, registered.word
    alike = likeness(ours, now)
    if alike is not Sameness.SAME and ours.node != node:
        why = f"{beside.path} is a copy of what lies beside node {ours.node}'s image"
        return _doubt(known, ours.generation, why)
    if alike in OTHERS:
        why = f"{beside.path} was written for other disks than those of node {node} now"
        return _doubt(known, _highest(ours, theirs), why)
    if theirs is None or theirs.serial <= ours.serial:
        return _take(known, ours)
    if likeness(theirs, now) in OTHERS:
        why = f"The word in {registered.path} is a later one, about another disk that lay there"
        return _doubt(known, _highest(ours, theirs), f"{why} (node {node}, {beside.path})")
    if ours.serial >= theirs.beside:
        return _take(known, theirs)  # it could not be written beside the image
    return _doubt(
        known,
        _highest(ours, theirs),
        f"{beside.path} (generation {ours.generation}) is older than {registered.path} (generation "
        f"{theirs.generation}): node {node}'s disks were restored from a backup, or the file was",
    )


def _highest(ours: Word, theirs: Word | None) -> int:
    return max(ours.generation, theirs.generation if theirs else 0)
