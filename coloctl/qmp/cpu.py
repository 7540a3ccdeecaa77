"""Build the commands that ask a QEMU for CPU models, as values like those of `qmp.command`.

Called by `colo.cpu_models`. Invariant: none of them needs a machine, and none changes one.
"""

from __future__ import annotations

from coloctl.qmp.value import Command


def query_cpu_definitions() -> Command:
    """Build `query-cpu-definitions`: each model, with the features that this machine misses."""
    return Command("query-cpu-definitions")


def expand_cpu_model(name: str) -> Command:
    """Build `query-cpu-model-expansion`, the full one: every property that the model has here."""
    return Command("query-cpu-model-expansion", {"type": "full", "model": {"name": name}})
