"""What an append-only file holds is read exactly, however it was cut, and only up to its mark."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.chaos.evidence.appendonly import NotRedisFile, commands, records
from coloctl.chaos.evidence.audit import parsed

pytestmark = pytest.mark.unit

MARK = (b"audit:mark", b"abc")


def written(*given: list[bytes]) -> bytes:
    """The commands as redis writes them."""
    return b"".join(
        b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)
        for words in given
    )


def push(client: int, *numbers: int) -> list[bytes]:
    return [b"RPUSH", b"records:%d" % client, *(b"%d" % n for n in numbers)]


COMMANDS = st.lists(st.lists(st.binary(max_size=12), min_size=1, max_size=4), max_size=6)


@given(COMMANDS)
def test_commands_are_read_as_they_were_written(given: list[list[bytes]]) -> None:
    assert list(commands(written(*given))) == given


@given(COMMANDS, st.data())
def test_a_file_that_was_cut_short_holds_what_is_whole(
    given: list[list[bytes]], data: st.DataObject
) -> None:
    whole = written(*given)
    cut = data.draw(st.integers(0, len(whole)))
    kept = list(commands(whole[:cut]))
    assert kept == given[: len(kept)]
    assert len(written(*given[: len(kept) + 1])) > cut or len(kept) == len(given)


@pytest.mark.parametrize(
    "data",
    [b"REDIS0011", b"*1\r\n!3\r\n", b"*x\r\n", b"*1\r\n$3\r\nabcdef\r\n", b"\0" * 64],
)
def test_what_redis_never_writes_is_torn(data: bytes) -> None:
    with pytest.raises(NotRedisFile):
        list(commands(data))


def test_records_are_those_before_the_mark() -> None:
    data = written(
        [b"SELECT", b"0"],
        push(0, 0),
        push(1, 0, 1),
        [b"SET", b"audit:mark", b"earlier"],
        push(0, 1),
        [b"SET", *MARK],
        push(0, 2),
    )
    assert records(data, MARK) == {0: [0, 1], 1: [0, 1]}
    assert records(data) == {0: [0, 1, 2], 1: [0, 1]}


def test_notes_and_other_keys_are_passed_over() -> None:
    data = b"#TS:1700000000\r\n" + written([b"RPUSH", b"others", b"x"], push(3, 7), [b"MULTI"])
    assert records(data) == {3: [7]}


def test_a_mark_that_is_not_on_the_disk_is_told() -> None:
    with pytest.raises(NotRedisFile, match="not in the file"):
        records(written(push(0, 0)), MARK)


def test_an_audit_comes_back_from_its_json() -> None:
    audit = parsed({"at_s": 1.5, "boot_id": "u", "disk": {"0": [0, 1]}, "memory": {"0": [0]}})
    assert (audit.at_s, audit.boot_id) == (1.5, "u")
    assert audit.disk == {0: [0, 1]}
    assert audit.memory == {0: [0]}
