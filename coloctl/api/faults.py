"""Inject faults into a running pair by hand: any kind of `chaos.faults`, each with its healing.

Called by `api.pair`, which heals each fault at the end of its block.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from coloctl import pairfile, paths
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.faults.fault import Fault as AnyKind
from coloctl.chaos.faults.fault import Injected, NothingToHit, PairUnderTest, build
from coloctl.chaos.run.site import LabSite, Site, site_of
from coloctl.control.acts import QUERY_WAIT_S, Acts
from coloctl.control.client import ControlClient
from coloctl.errors import LabError, NotProtected, UsageError
from coloctl.lab import layout, machines
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec
from coloctl.model.view import PairView

_NETNS = "netns:"
AnyFault = AnyKind[Any]


class Active:
    """A fault that was injected, as a pair keeps it until it is healed."""

    def __init__(self, fault: AnyFault) -> None:
        """Inject ``fault``; raises the error of it."""
        self.fault = fault
        self.injected: Injected = fault.inject()
        self.healed = False

    def heal(self) -> None:
        """Heal the fault; further calls change nothing."""
        if not self.healed:
            self.fault.heal()
            self.fault.close()
            self.healed = True


class FaultHandle:
    """A fault that was injected; it lasts until it is healed, at the latest at the block's end.

    ``async with await pair.inflict(...)`` heals it at the end of that block.
    """

    def __init__(
        self, active: Active, in_thread: Callable[[Callable[[], None]], Awaitable[None]]
    ) -> None:
        self._active = active
        self._in_thread = in_thread

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that it hit, by name."""
        return self._active.injected.nodes

    @property
    def role(self) -> str:
        """The role of the one node that it hit, just before; empty for several or none."""
        return self._active.injected.role

    @property
    def healed(self) -> bool:
        """True once it was healed."""
        return self._active.healed

    async def heal(self) -> None:
        """Heal the fault, as far as it can be; further calls change nothing."""
        if not self.healed:
            await self._in_thread(self._active.heal)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.heal()


def inject(name: str, kind: str, target: str, params: Mapping[str, Any]) -> Active:
    """Inject a fault into the running pair ``name``.

    Raises `UsageError` for an unknown kind, target or parameter, and `NotProtected` when there was
    nothing to hit.
    """
    _known(kind, target)
    try:
        given = FAULTS[kind].params.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "its parameters"
        raise UsageError(f"The fault '{kind}' does not take {key}: {first['msg']}.") from None
    try:
        return Active(build(FAULTS, _pair(name), kind, target, given))
    except NothingToHit as nothing:
        raise NotProtected(f"The fault '{kind}' met nothing: {nothing.message}.") from None


def _known(kind: str, target: str) -> None:
    """Refuse a fault that cannot be injected here; raises `UsageError`."""
    fault = FAULTS.get(kind)
    if fault is None:
        raise UsageError(
            f"There is no fault '{kind}'.", hint=f"there are: {', '.join(sorted(FAULTS))}"
        )
    if fault.targets and target not in fault.targets:
        raise UsageError(
            f"The fault '{kind}' cannot be aimed at '{target}'.",
            hint=f"it can be aimed at: {', '.join(fault.targets)}",
        )
    if fault.prepare is not None:
        raise UsageError(
            f"The fault '{kind}' needs preparation before the pair is started.",
            hint="write it into a scenario",
        )


def _pair(name: str) -> PairUnderTest:
    """Return the running pair ``name``, with its lab; each command has a connection of its own."""

    def ask(command: str, timeout_s: float, /, **arguments: Any) -> Any:
        with ControlClient.connect(paths.control_socket(name), QUERY_WAIT_S) as client:
            return client.execute(command, timeout_s, **arguments)

    def view() -> PairView:
        with ControlClient.connect(paths.control_socket(name), QUERY_WAIT_S) as client:
            return Acts(client).view()

    now = view()
    pair = pairfile.load(Path(now.spec_path))
    assert pair.source is not None
    variables = _environment(now.supervisor_pid)
    return PairUnderTest(name, place_of(pair, variables), pair.source.parent, view, ask)


def _environment(supervisor: int | None) -> Mapping[str, str]:
    """Return the variables of the pair's supervisor; this process's where they cannot be read."""
    with contextlib.suppress(OSError):
        words = os.fsdecode(Path(f"/proc/{supervisor}/environ").read_bytes()).split("\0")
        return dict(word.split("=", 1) for word in words if "=" in word)
    return os.environ


def place_of(pair: PairSpec, variables: Mapping[str, str]) -> Site:
    """Return the site of the pair whose supervisor has those environment variables.

    The processes of a machine that is none of a lab cannot be hurt: they are refused there.
    """
    if not any(node.machine for node in pair.nodes.values()):
        return site_of(lab_of(pair))
    lab = machines.reached_by(variables.get("COLOCTL_SSH", ""))
    return Elsewhere(pair) if lab is None else site_of(lab)


class Elsewhere(LabSite):
    """The site of a pair with a node on another machine, which is none of a lab."""

    def __init__(self, pair: PairSpec) -> None:
        super().__init__(NoLab(pair.name))
        nodes = pair.nodes.values()
        self._machines: dict[str, str] = {node.name: node.machine for node in nodes}

    def outer(self, node: str, pid: int) -> int:
        """See `Site.outer`; raises `LabError` for a process of another machine."""
        if machine := self._machines[node]:
            raise LabError(
                f"Node {node} runs on {machine}, so no fault can be injected into it from here.",
                hint="`coloctl lab machines pair` writes a pair file for machines of a lab",
            )
        return pid


def lab_of(pair: PairSpec) -> Lab:
    """Return the lab whose hosts are the pair's; for a pair elsewhere, one that refuses all."""
    host = pair.nodes["a"].host
    if host.startswith(_NETNS):
        machine = host.removeprefix(_NETNS)
        if machine == layout.namespace(layout.DEFAULT, "host-a"):
            return Lab(layout.DEFAULT)
        if machine.endswith("-host-a"):
            return Lab(machine.removesuffix("-host-a"))
    return NoLab(pair.name)


class NoLab(Lab):
    """The lab of a pair that runs outside of any lab: it has no name, no machine and no link."""

    def __init__(self, pair: str) -> None:
        self._pair = pair

    def __getattr__(self, name: str) -> Any:
        raise LabError(
            f"The pair {self._pair} does not run in a lab, so only its processes can be hurt.",
            hint="`coloctl lab guest --pair` writes a pair file for a lab",
        )
