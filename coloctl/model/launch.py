"""Describe one program that a host starts; frozen values.

Built by `machine.cmdline` for a QEMU of a pair and by `asked` for one that only answers queries;
`host.launch` starts it. `host.account` finds the account of one that runs as another user, and
`colo.taps` orders its taps.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from coloctl.model.units import MIB


@dataclass(frozen=True)
class Account:
    """The user as which a program runs, where that is not coloctl's own."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()  #: others, such as the group that may use KVM

    @property
    def all_groups(self) -> frozenset[int]:
        """Every group that the program is in."""
        return frozenset({self.gid, *self.groups})


@dataclass(frozen=True)
class TapOrder:
    """A tap that coloctl makes itself, as a port of a bridge, and removes when its QEMU has ended.

    Note the difference: a `TapEnd` is opened for a QEMU, whichever program made it.
    """

    ifname: str
    bridge: str
    mark: str  #: its alias, by which this pair's tap is known from any other
    vnet_header: bool
    account: Account | None = None  #: who may open it; None: the user who makes it


@dataclass(frozen=True)
class TapEnd:
    """A tap that is opened before the program starts, which may have no right to."""

    ifname: str
    vnet_header: bool


@dataclass(frozen=True)
class Unit:
    """The unit of systemd that a program gets where systemd runs: its name without a suffix."""

    name: str
    description: str
    memory_max: int | None = None  #: bytes; the kernel ends a program that takes more

    @classmethod
    def of_node(cls, pair: str, node: str, memory_max_mib: int | None) -> Self:
        """Describe the unit for the QEMU of a node."""
        limit = None if memory_max_mib is None else memory_max_mib * MIB
        return cls(f"coloctl-{pair}-{node}", f"QEMU of node {node} of the pair {pair}", limit)


@dataclass(frozen=True)
class Launch:
    """The things that a host needs to start one program, such as a QEMU.

    ``sockets`` are to be bound and listening before the program starts; ``{fd:NAME}`` in ``argv``
    stands for the number of the inherited descriptor, in the words at ``numbered`` and in no other:
    what a pair file has in such a form stays as it is. None: in all of them. ``disks`` are the
    images that a QEMU opens.

    With ``account`` the program runs as that user, who is given the files ``owned`` until the
    program has ended, and must be able to read those of ``reads``. The taps are opened for it, and
    ``{fd:NAME}`` stands for them too. ``unit`` is for a program that outlives coloctl.
    """

    argv: tuple[str, ...]
    sockets: Mapping[str, Path] = field(default_factory=dict)
    disks: tuple[Path, ...] = ()
    numbered: frozenset[int] | None = None
    account: Account | None = None
    owned: tuple[Path, ...] = ()
    reads: tuple[Path, ...] = ()
    taps: Mapping[str, TapEnd] = field(default_factory=dict)
    unit: Unit | None = None

    def lines(self) -> list[str]:
        """Format the command line for people and shells: one option with its value per line."""
        groups: list[list[str]] = [[self.argv[0]]]
        for word in self.argv[1:]:
            if word.startswith("-") or len(groups) == 1 or len(groups[-1]) == 2:
                groups.append([word])
            else:
                groups[-1].append(word)
        return [shlex.join(group) for group in groups]
