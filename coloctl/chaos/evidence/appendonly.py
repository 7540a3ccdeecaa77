"""What an append-only file of redis holds of numbered records, up to a mark; pure.

The file is a sequence of commands in redis's own wire format: ``*3``, then per word its length
(``$5``) and its bytes, each line ending in CR LF.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

#: What the lists of records are called: with the number of their client behind it.
RECORDS = b"records:"


class Torn(ValueError):
    """The file is not what redis writes."""


def commands(data: bytes) -> Iterator[list[bytes]]:
    """Every whole command of the file; what a crash cut short at its end is none.

    Raises `Torn` where the file holds something else.
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
                raise Torn(f"no end of a word at {at + length}")
            words.append(data[at : at + length])
            at += length + 2
        if at > len(data):
            return
        yield words


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    """The line there, and where the next one begins: beyond the end when it is not whole."""
    end = data.find(b"\r\n", at)
    return (b"", len(data) + 1) if end < 0 else (data[at:end], end + 2)


def _number(data: bytes, at: int, mark: bytes) -> tuple[int, int]:
    if at >= len(data):
        return 0, len(data) + 1
    line, after = _line(data, at)
    if after > len(data) and data[at : at + 1] == mark:
        return 0, after
    if line[:1] != mark or not line[1:].isdigit():
        raise Torn(f"no command at {at}: {line[:20]!r}")
    return int(line[1:]), after


def records(data: bytes, mark: tuple[bytes, bytes] | None = None) -> Mapping[int, list[int]]:
    """Per client, the records that were appended before ``mark``, a key and a value, was set.

    Without a mark, all. Raises `Torn` when the file is not sound or the mark is not in it.
    """
    held: dict[int, list[int]] = defaultdict(list)
    for name, *words in commands(data):
        if name.upper() == b"RPUSH" and words[0].startswith(RECORDS):
            held[int(words[0].removeprefix(RECORDS))] += map(int, words[1:])
        elif mark is not None and name.upper() == b"SET" and tuple(words[:2]) == mark:
            return dict(held)
    if mark is not None:
        raise Torn("what was set last is not in the file")
    return dict(held)
