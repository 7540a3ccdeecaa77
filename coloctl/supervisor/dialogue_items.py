"""The steps of a dialogue as documents: which node, what, and why; pure."""

from __future__ import annotations

from typing import Any

from coloctl.colo import taps as colo_taps
from coloctl.colo.plan import Plan
from coloctl.machine import cmdline
from coloctl.model.pair import NodeName, PairSpec
from coloctl.qmp import command as qmp

Item = dict[str, Any]
Items = list[Item]


def taps(spec: PairSpec, node: NodeName, *, up: bool) -> Items:
    """The taps of ``node`` go up or down."""
    return [
        act(node, f"ip link set {tap} {'up' if up else 'down'}", "")
        for tap in colo_taps.names(spec, node)
    ]


def said(node: NodeName, steps: Plan) -> Items:
    """The commands of a sequence, to one node."""
    return [command(node, step.command, step.why) for step in steps]


def command(node: NodeName, what: qmp.Command, why: str) -> Item:
    """One QMP command, as it goes over the socket."""
    return {"node": node, "command": what.wire(), "why": why}


def launch(node: NodeName, how: cmdline.Launch, why: str) -> Item:
    """One QEMU is started."""
    return {"node": node, "launch": how.lines(), "why": why}


def act(node: NodeName, words: str, why: str) -> Item:
    """What coloctl itself does, in words."""
    return {"node": node, "act": words, "why": why}
