"""Goal: any bytes beside an image are a record or a sentence; a table weighs both places.

Method: every rule of `colo.weigh.weigh` is a line below; bytes and bits are drawn by hypothesis.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.colo.companion import (
    GENERATION_MAX,
    Companion,
    CompanionRead,
    DiskRecord,
    Worth,
    parse,
    render,
)
from coloctl.colo.weigh import weigh
from coloctl.errors import PreconditionFailed
from coloctl.model.disk import DiskIdentity
from coloctl.model.pair import NODES

pytestmark = pytest.mark.unit

HERE = DiskIdentity("file:/srv/b.qcow2", "inode 7 born 99", "m1")
GONE = replace(HERE, mark="", present=False)
NEW_FILE = replace(HERE, mark="inode 8 born 100")
RENAMED = replace(HERE, key="file:/new/b.qcow2")
COPIED = replace(NEW_FILE, key="file:/new/b.qcow2")
OTHER_MACHINE = replace(NEW_FILE, machine="m2")
FIRST_BOOT = DiskIdentity("path:/dev/sdx", "boot 1", "m1", device=True, stable=False)
NEXT_BOOT = replace(FIRST_BOOT, mark="boot 2")

RECORD = DiskRecord("web", "b", 4, Worth.IN_SYNC, serial=9, beside=9, images={"disk0": HERE})
OLD = DiskRecord("web", "b", 4, Worth.IN_SYNC)

records = st.builds(
    DiskRecord,
    pair=st.text(max_size=8),
    node=st.sampled_from(NODES),
    generation=st.integers(0, GENERATION_MAX),
    state=st.sampled_from(Worth),
    serial=st.integers(1, 99),
    beside=st.integers(0, 99),
    images=st.dictionaries(
        st.text(max_size=5),
        st.builds(DiskIdentity, st.text(min_size=1, max_size=9), st.text(max_size=9)),
        max_size=2,
    ),
    overlays=st.dictionaries(
        st.text(max_size=5), st.lists(st.text(max_size=9), max_size=2).map(tuple), max_size=2
    ),
)


@given(records)
def test_what_is_written_is_read_back(record: DiskRecord) -> None:
    assert parse(render(record), "web", "a") == record


@given(records, st.data())
def test_a_record_with_a_flipped_bit_is_damage_or_the_same_record(
    record: DiskRecord, data: Any
) -> None:
    content = bytearray(render(record))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    try:
        assert parse(bytes(content), "web", "a") == record
    except ValueError as error:
        assert str(error)


@given(records, st.integers(0, 400))
def test_half_a_record_is_damage(record: DiskRecord, length: int) -> None:
    whole = render(record)
    with pytest.raises(ValueError, match=r"^it"):
        parse(whole[: min(length, len(whole) - 2)], "web", "a")


HOSTILE = {
    "empty": b"",
    "spaces": b" \n\t",
    "NULs": b"\0" * 512,
    "no text": b"\xff\xfe\x80",
    "a big number": b"9" * 5000,
    "a number beyond any": b"9" * 30,
    "below zero": b"-1",
    "a fraction": b"1.5",
    "infinity": b"1e999",
    "not a number": b"NaN",
    "deep lists": b"[" * 100_000,
    "deep tables": b'{"a":' * 100_000,
    "a truth": b"true",
    "a list of them": b"[4]",
    "state of another kind": b'{"pair":"web","node":"b","generation":1,"state":["in-sync"]}',
    "node of another kind": b'{"pair":"web","node":{},"generation":1,"state":"in-sync"}',
    "a big number inside": b'{"pair":"web","node":"b","generation":' + b"9" * 5000 + b"}",
    "checksum taken away": render(RECORD).replace(b'"checksum"', b'"checksun"'),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_damage_in_words(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it") as damage:
        parse(content, "web", "b")
    assert len(str(damage.value)) < 100


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_record_or_damage_in_words(content: bytes) -> None:
    try:
        record = parse(content, "web", "b")
    except ValueError as damage:
        assert str(damage)
        assert "Traceback" not in str(damage)
    else:
        assert 0 <= record.generation <= GENERATION_MAX


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(json.loads(render(RECORD)))), json_values)
def test_any_value_in_place_of_another_is_damage(key: str, value: object) -> None:
    document = json.loads(render(RECORD))
    document[key] = value
    try:
        assert parse(json.dumps(document).encode(), "web", "b") == RECORD
    except ValueError as damage:
        assert str(damage)


def test_what_an_earlier_coloctl_wrote_is_read() -> None:
    text = b'{"pair": "web", "node": "b", "generation": 4, "state": "in-sync"}\n'
    assert parse(text, "web", "b") == OLD
    assert parse(b"4\n", "web", "b") == OLD


NOTHING = "new"
KNOWN = (4, Worth.IN_SYNC)
OLDER = replace(RECORD, generation=3, state=Worth.FOLLOWING, serial=8)
AHEAD = replace(RECORD, serial=10, generation=5, beside=9)
BROKEN = "damaged"
#: Another file that lay in the same place, as below a filesystem that was not mounted.
ELSE = {"disk0": replace(HERE, mark="inode 5 born 5")}
#: A secondary's, in the registry; a promotion waits for the record beside the image alone.
FOLLOWS = replace(RECORD, state=Worth.FOLLOWING, beside=RECORD.serial)
RULES: dict[str, tuple[Any, Any, DiskIdentity, Any]] = {
    # name: (beside, registered, the image now, what is known)
    "neither is there": (None, None, HERE, NOTHING),
    "both agree": (RECORD, RECORD, HERE, KNOWN),
    "the companion alone": (RECORD, None, HERE, KNOWN),
    "the registry alone": (None, RECORD, HERE, KNOWN),
    "the companion is damaged, the registry knows": (BROKEN, RECORD, HERE, KNOWN),
    "the registry is damaged, the companion knows": (RECORD, BROKEN, HERE, KNOWN),
    "the companion is damaged, the registry knows nothing": (BROKEN, None, HERE, "any"),
    "the registry is damaged, nothing lies beside": (None, BROKEN, HERE, "any"),
    "both are damaged": (BROKEN, BROKEN, HERE, "any"),
    "the registry could not be written": (RECORD, OLDER, HERE, KNOWN),
    "the companion could not be written": (RECORD, AHEAD, HERE, (5, Worth.IN_SYNC)),
    "the companion may have said more than a secondary's": (BROKEN, FOLLOWS, HERE, "any"),
    "the companion may have said more, and is gone": (None, FOLLOWS, HERE, "any"),
    "the companion says more than a secondary's": (
        replace(RECORD, generation=5, serial=10),
        FOLLOWS,
        HERE,
        (5, Worth.IN_SYNC),
    ),
    "a secondary's companion could not be written": (
        BROKEN,
        replace(FOLLOWS, beside=0),
        HERE,
        (4, Worth.FOLLOWING),
    ),
    "companion and disk were restored": (OLDER, RECORD, HERE, 4),
    "an earlier coloctl's record": (OLD, None, HERE, KNOWN),
    "an earlier coloctl promoted since": (replace(OLD, generation=5), RECORD, HERE, (5, OLD.state)),
    "an earlier coloctl's record, the same": (OLD, RECORD, HERE, KNOWN),
    "an earlier coloctl's record, restored": (replace(OLD, generation=2), RECORD, HERE, 4),
    "an earlier coloctl left them": (replace(OLD, state=Worth.DIVERGED), RECORD, HERE, 4),
    "the image was renamed with its companion": (RECORD, None, RENAMED, KNOWN),
    "image and companion were copied elsewhere": (RECORD, None, COPIED, KNOWN),
    "image and companion are on another machine": (RECORD, None, OTHER_MACHINE, KNOWN),
    "another machine's registry": (None, RECORD, OTHER_MACHINE, 4),
    "another image lies there, its companion too": (RECORD, RECORD, NEW_FILE, 4),
    "another image lies there, the companion was removed": (None, RECORD, NEW_FILE, "replaced"),
    "another image lies there, its companion is damaged": (BROKEN, RECORD, NEW_FILE, "any"),
    "the image is gone": (None, RECORD, GONE, 4),
    "the image is gone, the companion not": (RECORD, RECORD, GONE, 4),
    "the registry is of a file before": (RECORD, replace(OLDER, images=ELSE), HERE, KNOWN),
    "the registry is of a later file": (RECORD, replace(AHEAD, images=ELSE), HERE, 5),
    "a copy of the other node's files": (replace(RECORD, node="a"), None, COPIED, 4),
    "the nodes were exchanged": (replace(RECORD, node="a"), replace(RECORD, node="a"), HERE, KNOWN),
}


def place(record: Any) -> CompanionRead:
    if record == BROKEN:
        return CompanionRead("/x", trouble="/x is damaged: it is empty.")
    return CompanionRead("/x", record)


@pytest.mark.parametrize(("beside", "registered", "now", "known"), RULES.values(), ids=RULES)
def test_both_places_are_weighed_by_the_table(
    beside: Any, registered: Any, now: DiskIdentity, known: Any
) -> None:
    check(weigh("web", "b", {"disk0": now}, place(beside), place(registered)), known)


def check(found: Companion, known: Any) -> None:
    if known == NOTHING:
        assert (found.written, found.doubt, found.generation) == (False, "", 0)
    elif isinstance(known, tuple):
        assert (found.written, found.doubt) == (True, "")
        assert (found.generation, found.state) == known
    else:
        assert found.doubt.endswith(".")
        assert found.bound == {"any": None, "replaced": 4}.get(known, known)
        assert found.replaced == (known == "replaced")
        assert not found.written


DEVICE_RULES: dict[str, tuple[Any, DiskIdentity, Any]] = {
    "a device that is new": (None, FIRST_BOOT, NOTHING),
    "a device without a lasting name, in one boot": (FIRST_BOOT, FIRST_BOOT, KNOWN),
    "a device without a lasting name, in the next": (FIRST_BOOT, NEXT_BOOT, 4),
    "a device by its name": (DiskIdentity("dm:1", device=True), DiskIdentity("dm:1"), KNOWN),
    "what is known of a device is damaged": (BROKEN, FIRST_BOOT, "any"),
}


@pytest.mark.parametrize(("was", "now", "known"), DEVICE_RULES.values(), ids=DEVICE_RULES)
def test_a_device_is_known_to_the_registry_alone(was: Any, now: DiskIdentity, known: Any) -> None:
    record = was if was in (None, BROKEN) else replace(RECORD, images={"disk0": was})
    check(weigh("web", "b", {"disk0": now}, None, place(record)), known)


@pytest.mark.parametrize("places", [(RECORD, None), (None, RECORD), (RECORD, RECORD)])
def test_disks_of_another_pair_are_refused(
    places: tuple[DiskRecord | None, DiskRecord | None],
) -> None:
    with pytest.raises(PreconditionFailed, match="belong to the pair web") as refused:
        weigh("shop", "b", {"disk0": HERE}, *map(place, places))
    assert refused.value.hint and "/x" in refused.value.hint


def test_a_place_where_another_pair_s_disk_once_lay_is_free() -> None:
    found = weigh("shop", "b", {"disk0": NEW_FILE}, place(None), place(RECORD))
    assert found == Companion("shop", "b")


def test_overlays_that_are_pending_are_known_from_both_places() -> None:
    overlays = {"disk0": ("/srv/active0.qcow2", "/srv/hidden0.qcow2")}
    record = replace(RECORD, state=Worth.OVERLAY_PENDING, overlays=overlays)
    for places in ((record, None), (None, record)):
        found = weigh("web", "b", {"disk0": HERE}, *map(place, places))
        assert (found.state, dict(found.overlays)) == (Worth.OVERLAY_PENDING, overlays)
