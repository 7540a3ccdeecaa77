"""Build the steps of a dialogue as documents; pure, and raises nothing.

Called by `supervisor.dialogue`, `supervisor.dialogue_disks` and `cli.verbs.start`; a sequence comes
from `colo.plan`, a command line is a `Launch` of `colo.launch`. Keys: ``node``, ``why``, and one of
``launch``, ``command`` and ``act``.
"""

from __future__ import annotations

from typing import Any

from coloctl.colo import taps as colo_taps
from coloctl.colo.plan import Plan
from coloctl.model.launch import Launch
from coloctl.model.pair import NodeName, PairSpec
from coloctl.qmp import command as qmp

Item = dict[str, Any]
Items = list[Item]


def taps(spec: PairSpec, node: NodeName, *, up: bool) -> Items:
    """List the steps that set the taps of ``node`` up or down."""
    return [
        act(node, f"ip link set {tap} {'up' if up else 'down'}", "")
        for tap in colo_taps.names(spec, node)
    ]


def commands(node: NodeName, steps: Plan) -> Items:
    """Return one step per command of the sequence, for ``node``."""
    return [command(node, step.command, step.why) for step in steps]


def command(node: NodeName, what: qmp.Command, why: str) -> Item:
    """Return one QMP command, as it goes over the socket."""
    return {"node": node, "command": what.wire(), "why": why}


def launch(node: NodeName, how: Launch, why: str) -> Item:
    """Return the start of one QEMU."""
    return {"node": node, "launch": how.lines(), "why": why}


def act(node: NodeName, words: str, why: str) -> Item:
    """Return a step of coloctl itself, described by ``words``."""
    return {"node": node, "act": words, "why": why}
