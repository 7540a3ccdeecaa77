"""Run a verb again in the user namespace of the lab that holds a pair's hosts.

Called by the verbs that open a pair's hosts themselves: `cli.verbs.start`, `cli.verbs.run`,
`cli.verbs.doctor`, and `cli.verbs.stop` with ``--force`` without a supervisor. For a user without
root `coloctl lab up` made that namespace (`lab.rootless`), and the lab's network namespaces can be
seen in it alone. All other verbs ask the supervisor, which runs there.
"""

from __future__ import annotations

from coloctl.lab import layout, rootless
from coloctl.model.pair import PairSpec


def enter(pair: PairSpec) -> None:
    """Replace this process by the same command in the lab's user namespace, where that is needed.

    Not needed: as root, in such a namespace already, and for a pair whose hosts are in no lab of
    this user. Call it before any thread starts. Raises `LabError` when the namespace cannot be
    entered.
    """
    if not rootless.needed():
        return
    hosts = {node.host.removeprefix("netns:") for node in pair.nodes.values()}
    for lab in rootless.held():
        if hosts & {layout.namespace(lab, role) for role in layout.ROLES}:
            rootless.join(lab)
            return
