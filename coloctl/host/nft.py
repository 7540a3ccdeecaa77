"""Speak nftables' netlink protocol: list tables and rules, and replace tables in one transaction.

Called by `host.guard`; `host.netlink` frames the messages. They are made here and not by pyroute2,
because the agent on another machine has Python's standard library alone.

Invariant: what one call to `change` asks for happens as a whole or not at all, and the socket
answers for the network namespace of the calling thread.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from coloctl.host.netlink import (
    ACK,
    CHUNK,
    DONE,
    DUMP,
    ERROR,
    REQUEST,
    attribute,
    attributes,
    framed,
    messages,
    nested,
    require_done,
    string,
)

# Numbers from linux/netlink.h, linux/netfilter.h, linux/netfilter/nfnetlink.h and nf_tables.h.
_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _GET_TABLE, _DEL_TABLE = 0, 1, 2
_NEW_CHAIN = 3
_NEW_RULE, _GET_RULE = 6, 7
_CREATE, _APPEND = 0x400, 0x800
_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_LIST_ELEMENT = 1
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_ACCEPT, _DROP = 1, 0

_GENERIC = struct.Struct("=BBH")  # family, version, subsystem of a batch in network order
#: The kernel answers while it takes the message; a lost answer must not stop a launch. Seconds.
_ANSWER_WAIT_S = 2.0

_Message = tuple[int, int, bytes]  # type, flags, body

FAMILIES = {4: 2, 6: 10}  #: NFPROTO_IPV4 and NFPROTO_IPV6, by the version of the protocol


class Hook(IntEnum):
    """The places at which packets pass a chain (enum nf_inet_hooks)."""

    RECEIVED = 1  #: NF_INET_LOCAL_IN: for a socket of this machine
    SENT = 3  #: NF_INET_LOCAL_OUT: from a socket of this machine


@dataclass(frozen=True)
class Rule:
    """One rule of a chain: its expressions are evaluated from left to right."""

    chain: str
    expressions: Sequence[bytes]


@dataclass(frozen=True)
class RuleTable:
    """A table with its chains, which accept what no rule drops, and the rules of all of them."""

    name: str
    chains: Sequence[tuple[str, Hook]]
    rules: Sequence[Rule]


def meta(key: int) -> bytes:
    """Load a fact about the packet or its socket into the register."""
    return _expression("meta", _number(2, key), _number(1, 1))


def payload(base: int, offset: int, length: int) -> bytes:
    """Load bytes of a header into the register; ``base`` 1 is the network header, 2 transport."""
    numbers = enumerate((1, base, offset, length), start=1)
    return _expression("payload", *(_number(kind, value) for kind, value in numbers))


def compare(value: bytes, *, equal: bool) -> bytes:
    """Go on with the rule only if the register holds ``value``, or only if it does not."""
    data = nested(3, attribute(_DATA_VALUE, value))
    return _expression("cmp", _number(1, 1), _number(2, 0 if equal else 1), data)


def drop() -> bytes:
    """Drop the packet."""
    verdict = nested(_DATA_VERDICT, _number(1, _DROP))
    return _expression("immediate", _number(1, 0), nested(2, verdict))


def tables(family: int) -> set[str]:
    """List the tables of a family of `FAMILIES`; raises `OSError`."""
    found = _dump(_GET_TABLE, family)
    return {_text(values[_TABLE_NAME]) for of, values in found if of == family}


def count_rules(family: int, table: str) -> int:
    """Count the rules of a table; raises `OSError`."""
    return sum(
        of == family and _text(values[_RULE_TABLE]) == table
        for of, values in _dump(_GET_RULE, family)
    )


def change(family: int, remove: Collection[str], add: RuleTable | None = None) -> None:
    """Remove tables and add one, as one transaction; raises `OSError` if none of it was done."""
    steps = [_message(_DEL_TABLE, family, 0, string(_TABLE_NAME, name)) for name in sorted(remove)]
    if add is not None:
        steps += _new_table(family, add)
    if not steps:
        return
    begin, end = (
        framed(kind, REQUEST, index, _GENERIC.pack(0, 0, socket.htons(10)))
        for kind, index in ((_BATCH_BEGIN, 0), (_BATCH_END, len(steps) + 1))
    )
    numbered = [
        framed(_SUBSYSTEM | kind, REQUEST | ACK | flags, index, body)
        for index, (kind, flags, body) in enumerate(steps, start=1)
    ]
    with _socket() as sock:
        sock.send(b"".join((begin, *numbered, end)))
        waited = set(range(1, len(steps) + 1))
        while waited:
            for kind, number, body in messages(sock.recv(CHUNK)):
                if kind == ERROR:
                    require_done(body)
                    waited.discard(number)


def _new_table(family: int, table: RuleTable) -> list[_Message]:
    made = [_message(_NEW_TABLE, family, _CREATE, string(_TABLE_NAME, table.name))]
    for name, hook in table.chains:
        hooked = nested(_CHAIN_HOOK, _number(_HOOK_NUMBER, hook), _number(_HOOK_PRIORITY, 0))
        made.append(
            _message(
                _NEW_CHAIN,
                family,
                _CREATE,
                string(_CHAIN_TABLE, table.name),
                string(_CHAIN_NAME, name),
                hooked,
                _number(_CHAIN_POLICY, _ACCEPT),
                string(_CHAIN_TYPE, "filter"),
            )
        )
    for rule in table.rules:
        made.append(
            _message(
                _NEW_RULE,
                family,
                _CREATE | _APPEND,
                string(_RULE_TABLE, table.name),
                string(_RULE_CHAIN, rule.chain),
                nested(_RULE_EXPRESSIONS, *rule.expressions),
            )
        )
    return made


def _message(kind: int, family: int, flags: int, *attributes: bytes) -> _Message:
    return kind, flags, _GENERIC.pack(family, 0, 0) + b"".join(attributes)


def _dump(kind: int, family: int) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Ask for all objects of a kind; yields the family and the attributes of each."""
    request = framed(_SUBSYSTEM | kind, REQUEST | DUMP, 1, _GENERIC.pack(family, 0, 0))
    with _socket() as sock:
        sock.send(request)
        while True:
            for answer, _, body in messages(sock.recv(CHUNK)):
                if answer == DONE:
                    return
                if answer == ERROR:
                    require_done(body)
                else:
                    yield body[0], dict(attributes(body[_GENERIC.size :]))


@contextlib.contextmanager
def _socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_ANSWER_WAIT_S)
        sock.bind((0, 0))
        yield sock


def _expression(name: str, *attributes: bytes) -> bytes:
    data = nested(_EXPRESSION_DATA, *attributes)
    return nested(_LIST_ELEMENT, string(_EXPRESSION_NAME, name), data)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
