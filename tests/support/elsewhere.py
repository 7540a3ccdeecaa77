"""A pair whose node b is on another machine, which can be out of reach; all of it is this one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import make_spec

from coloctl.errors import HostOutOfReach
from coloctl.host.local import LocalHost
from coloctl.host.machine import this_machine
from coloctl.host.records import Contact, Machine, Reach
from coloctl.model.pair import PairSpec
from coloctl.supervisor import pair_hosts
from coloctl.supervisor.started import Started, remember


class Elsewhere(LocalHost):
    """A host of another machine, which is out of reach until it is dialled."""

    def __init__(self, *, answers: bool) -> None:
        super().__init__()
        self.name = "ssh://hv2"
        self.answers = answers
        self.dialled = 0
        self.contact = Contact.NEVER
        self.state_dir: Path | None = None  #: this machine's, where none is given

    @property
    def machine(self) -> Machine:
        usual = this_machine()
        return replace(usual, state_dir=self.state_dir or usual.state_dir)

    async def aclose(self) -> None:
        """Stay open: a test opens it more than once."""

    @property
    def reach(self) -> Reach:
        return Reach(self.contact, 0.0, "ssh://hv2 is out of reach." if self.dialled else "")

    async def ready(self, deadline_s: float) -> None:
        self.dialled += 1
        if not self.answers:
            raise HostOutOfReach("ssh://hv2 is out of reach: No route to host.")
        self.contact = Contact.CONNECTED


def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder of the pair ``web``, on a machine that knows of no other pair."""
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "lasting" / "disks"))
    (folder := tmp_path / "state" / "web").mkdir(mode=0o700, parents=True)
    return folder


def on_another_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spec: PairSpec | None = None
) -> Elsewhere:
    """Remember in ``folder`` a pair whose node b is on another machine, which does not answer."""
    host = Elsewhere(answers=False)
    spec = spec or make_spec()
    nodes = {**spec.nodes, "a": replace(spec.nodes["a"], host="local")}
    nodes["b"] = replace(spec.nodes["b"], host=host.name)
    remember(folder, Started(replace(spec, nodes=nodes)))
    usual = pair_hosts.open_host
    monkeypatch.setattr(
        pair_hosts, "open_host", lambda name: host if name == host.name else usual(name)
    )
    return host
