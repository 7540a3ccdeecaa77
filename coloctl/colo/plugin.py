"""Find the fresh-code plugin on the machine of a node, and put it there from this one.

Called by `colo.launch` for each QEMU under TCG, by `colo.inspect` for the facts of a node, and by
`check.command`; on this machine `machine.freshcode` finds it, another one is asked through its
host.

Invariant: what is put on another machine was tried here in the same build of QEMU: path, size and
mtime of the binary, and of each file that a wrapper names, are equal on both.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from pathlib import Path

from coloctl.colo.ground import Ground, is_here
from coloctl.errors import ColoctlError
from coloctl.host.base import Host
from coloctl.machine import freshcode
from coloctl.model.pair import NodeName

log = logging.getLogger(__name__)

#: One stat(1) of two files.
LOOK_DEADLINE_S = 10.0


def known(ground: Ground, node: NodeName) -> Path | None:
    """Return the plugin that the QEMU of ``node`` loads; None under KVM, or without one.

    On this machine it is looked for now; of another one it is what `renewed` found last. Both
    nodes' QEMUs load it: a promoted QEMU was a secondary.
    """
    facts = ground.node(node)
    if ground.accel != "tcg":
        return None
    here = facts.machine is None or is_here(facts.machine)
    return freshcode.find(facts.binary.path) if here else facts.plugin


async def renewed(ground: Ground, node: NodeName) -> Ground:
    """Look for the plugin of ``node`` again: a cache may have been emptied, or filled, since."""
    facts = ground.node(node)
    if ground.accel != "tcg" or facts.machine is None or is_here(facts.machine):
        return ground
    found = await find(ground.hosts[node], facts.binary.path)
    nodes = {**ground.facts.nodes, node: replace(facts, plugin=found)}
    return replace(ground, facts=replace(ground.facts, nodes=nodes))


async def find(host: Host, binary: Path) -> Path | None:
    """Return the plugin that ``binary`` may load on its host; None where there is none to trust.

    Where that machine has none and this one has it for the same build, it is put there.
    """
    if is_here(host.machine):
        return freshcode.find(binary)
    fingerprint = await host.fingerprint(binary)
    file = freshcode.place_in(host.machine.cache_dir, fingerprint)
    if await _trusted(host, file):
        return file
    own = freshcode.find(binary)
    if own is None or own.name != file.name:
        return None
    try:
        await host.put(file, own.read_bytes(), 0o644)
    except (ColoctlError, OSError) as error:
        log.warning("The fresh-code plugin was not put on %s: %s", host.machine.name, error)
        return None
    return file if await _trusted(host, file) else None


async def _trusted(host: Host, file: Path) -> bool:
    """Return whether ``file`` is there, and only root and its user can write it or its folder.

    The cache folder around it that machine has checked itself, as `paths.cache_dir` does.
    """
    argv = ["stat", "-c", "%F|%u|%a", "--", str(file.parent), str(file)]
    done = await host.run(argv, deadline_s=LOOK_DEADLINE_S)
    if done.code != 0:
        return False
    kinds = ("directory", "regular file")
    with contextlib.suppress(ValueError):
        for kind, line in zip(kinds, done.stdout.splitlines(), strict=True):
            is_kind, user, mode = line.split("|")
            if is_kind != kind or int(user) not in (0, host.machine.euid) or int(mode, 8) & 0o022:
                return False
        return True
    return False
