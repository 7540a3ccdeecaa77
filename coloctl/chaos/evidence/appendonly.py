"""Read the numbered records in an append-only file of redis, up to a mark; pure.

Called by `chaos.workloads.guest_audit` in the lab. The file is a sequence of commands in redis's
own wire format: ``*3``, then per word its length (``$5``) and its bytes, each line ending in CR LF.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

#: The names of the lists of records begin so, and end with the number of their client.
RECORDS = b"records:"


class NotRedisFile(ValueError):
    """The file is not what redis writes."""


def commands(data: bytes) -> Iterator[list[bytes]]:
    """Return every whole command of the file, without one that a crash cut short at its end.

    Raises `NotRedisFile` where the file holds something else.
    """
    at = 0
    while at < len(data):
        if data[at : at + 1] == b"#":  # a note, such as a time stamp
            _, at = _line(data, at)
            continue
        count, at = _number(data, at, b"*")
        words = []
        for _ in range(count):
            length, at = _number(data, at, b"$")
            if at + length + 2 > len(data):
                return
            if data[at + length : at + length + 2] != b"\r\n":
                raise NotRedisFile(f"no end of a word at {at + length}")
            words.append(data[at : at + length])
            at += length + 2
        if at > len(data):
            return
        yield words


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the line there and the place of the next one: beyond the end if it is not whole."""
    end = data.find(b"\r\n", at)
    return (b"", len(data) + 1) if end < 0 else (data[at:end], end + 2)


def _number(data: bytes, at: int, mark: bytes) -> tuple[int, int]:
    if at >= len(data):
        return 0, len(data) + 1
    line, after = _line(data, at)
    if after > len(data) and data[at : at + 1] == mark:
        return 0, after
    if line[:1] != mark or not line[1:].isdigit():
        raise NotRedisFile(f"no command at {at}: {line[:20]!r}")
    return int(line[1:]), after


def records(data: bytes, mark: tuple[bytes, bytes] | None = None) -> Mapping[int, list[int]]:
    """Return per client the records that were appended before ``mark`` was set, a key and a value.

    Without a mark, return all. Raises `NotRedisFile` if the file is not sound or has no mark.
    """
    held: dict[int, list[int]] = defaultdict(list)
    for name, *words in commands(data):
        if name.upper() == b"RPUSH" and words[0].startswith(RECORDS):
            held[int(words[0].removeprefix(RECORDS))] += map(int, words[1:])
        elif mark is not None and name.upper() == b"SET" and tuple(words[:2]) == mark:
            return dict(held)
    if mark is not None:
        raise NotRedisFile("the mark is not in the file")
    return dict(held)
