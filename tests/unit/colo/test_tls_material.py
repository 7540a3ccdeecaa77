"""Which certificate a node needs, and which pairs are encrypted."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from support.fakes import make_spec, on_one_host

from coloctl.colo import tls
from coloctl.model.pair import PairSpec
from coloctl.model.tls import TlsFiles, TlsMode, TlsSpec

pytestmark = pytest.mark.unit


def at(host: str, spec: PairSpec | None = None) -> PairSpec:
    """The pair with its node b on ``host``."""
    spec = spec or make_spec()
    return replace(spec, nodes={**spec.nodes, "b": replace(spec.nodes["b"], host=host)})


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("ssh://hv2", "hv2"),
        ("ssh://root@hv2", "hv2"),
        ("ssh://root@hv2.example.com:2222", "hv2.example.com"),
        ("ssh://10.68.0.12:22", "10.68.0.12"),
        ("ssh://root@[fd00::2]:22", "fd00::2"),
    ],
)
def test_a_distant_node_is_called_as_its_host(host: str, name: str) -> None:
    assert tls.name_of(at(host), "b") == name
    named = replace(at(host), tls=TlsSpec(names={"b": "other"}))
    assert tls.name_of(named, "b") == "other"


def test_a_node_here_is_called_as_this_machine() -> None:
    assert tls.name_of(make_spec(), "a") == socket.gethostname().partition(".")[0]


def test_a_pair_is_encrypted_by_itself_where_a_node_is_on_another_machine() -> None:
    assert not make_spec().encrypted()
    assert at("ssh://hv2").encrypted()
    off = replace(at("ssh://hv2"), tls=TlsSpec(TlsMode.OFF))
    assert not off.encrypted()
    assert not on_one_host(make_spec()).encrypted()
    assert replace(make_spec(), tls=TlsSpec(TlsMode.ON)).encrypted()


def test_the_files_of_a_program_are_read_back_from_their_document() -> None:
    spec = TlsSpec()
    files = TlsFiles(*spec.files("a", tls.DISTANT_FOLDER), "hv2")
    assert TlsFiles.read(files.document()) == files
    assert str(files.key) == "/etc/coloctl/tls/key.pem"
