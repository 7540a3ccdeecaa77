"""Faults dealt to a pair by hand: any kind that the nemesis knows, each with its healing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from coloctl import pairfile, paths
from coloctl.chaos.faults import FAULTS, FaultKind
from coloctl.chaos.faults.fault import Blow, Ground
from coloctl.chaos.scenario.values import Planned
from coloctl.control.acts import QUERY_S, Acts
from coloctl.control.client import ControlClient
from coloctl.errors import LabError, NotProtected, UsageError
from coloctl.lab import layout
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec

_NETNS = "netns:"


@dataclass
class Dealt:
    """One fault that was dealt, as it is kept until it is healed."""

    kind: str
    target: str
    blow: Blow
    healed: bool = False

    def heal(self) -> None:
        """It is taken back; often is as good as once."""
        if not self.healed:
            self.blow.heal()
            self.healed = True


class Fault:
    """A fault that was dealt; it lasts until it is healed, at the latest at the end of the block.

    ``async with await pair.inflict(...)`` heals it at the end of that block.
    """

    def __init__(
        self, dealt: Dealt, in_thread: Callable[[Callable[[], None]], Awaitable[None]]
    ) -> None:
        self._dealt = dealt
        self._in_thread = in_thread

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that it hit, by name."""
        return self._dealt.blow.nodes

    @property
    def role(self) -> str:
        """What the one node that it hit was just before; empty where that were several, or none."""
        return self._dealt.blow.role

    @property
    def healed(self) -> bool:
        """It was taken back."""
        return self._dealt.healed

    async def heal(self) -> None:
        """The fault is taken back, as far as it can be; often is as good as once."""
        if not self.healed:
            await self._in_thread(self._dealt.heal)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.heal()


def deal(name: str, kind: str, target: str, params: Mapping[str, Any]) -> Dealt:
    """The fault has been dealt to the running pair ``name``.

    Raises `UsageError` for what is no fault, no target of it, or none of its parameters, and
    `NotProtected` when there was nothing to hurt.
    """
    fault = _known(kind, target)
    try:
        given = fault.params(**params).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "its parameters"
        raise UsageError(f"The fault '{kind}' does not take {key}: {first['msg']}.") from None
    blow = fault.strike(_ground(name), Planned(kind, kind, target, 0.0, params=given), _asker(name))
    if blow.missed:
        blow.heal()
        raise NotProtected(f"The fault '{kind}' met nothing: {blow.missed}.")
    return Dealt(kind, target, blow)


def _known(kind: str, target: str) -> FaultKind:
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
            f"The fault '{kind}' needs its stage set before the pair is started.",
            hint="write it into a scenario",
        )
    return fault


def _ask(name: str, command: str, timeout_s: float, **arguments: Any) -> Any:
    with ControlClient.connect(paths.control_socket(name), QUERY_S) as client:
        return client.execute(command, timeout_s, **arguments)


def _asker(name: str) -> Callable[..., Any]:
    return lambda command, timeout_s, /, **arguments: _ask(name, command, timeout_s, **arguments)


def _ground(name: str) -> Ground:
    def view() -> dict[str, Any]:
        with ControlClient.connect(paths.control_socket(name), QUERY_S) as client:
            return Acts(client).status_document()

    pair = pairfile.load(Path(view()["spec_path"]))
    assert pair.source is not None
    return Ground(name, lab_of(pair), pair.source.parent, view)


def lab_of(pair: PairSpec) -> Lab:
    """The lab whose hosts are the pair's; for a pair elsewhere, one that refuses all."""
    host = pair.nodes["a"].host
    if host.startswith(_NETNS):
        machine = host.removeprefix(_NETNS)
        if machine == layout.namespace(layout.DEFAULT, "host-a"):
            return Lab(layout.DEFAULT)
        if machine.endswith("-host-a"):
            return Lab(machine.removesuffix("-host-a"))
    return NoLab(pair.name)


class NoLab(Lab):
    """Stands where a pair runs outside of any lab: has no name, no machine and no link."""

    def __init__(self, pair: str) -> None:
        self._pair = pair

    def __getattr__(self, name: str) -> Any:
        raise LabError(
            f"The pair {self._pair} does not run in a lab, so only its processes can be hurt.",
            hint="`coloctl lab guest --pair` writes a pair file for a lab",
        )
