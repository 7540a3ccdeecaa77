"""Addresses of machines: their grammar, and which of them is this machine."""

from __future__ import annotations

import getpass
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.errors import PreconditionFailed
from coloctl.host import resolve
from coloctl.model.sshaddress import SshAddress, parse

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("spec", "address"),
    [
        ("ssh://hv2", SshAddress("hv2")),
        ("ssh://root@hv2", SshAddress("hv2", "root")),
        ("ssh://hv2.example.org:2222", SshAddress("hv2.example.org", port=2222)),
        ("ssh://a.b@10.0.0.2:22", SshAddress("10.0.0.2", "a.b", 22)),
        ("ssh://root@[fd00::2]:22", SshAddress("fd00::2", "root", 22)),
    ],
)
def test_an_address_is_read_and_written(spec: str, address: SshAddress) -> None:
    assert parse(spec) == address
    assert str(address) == spec


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("hv2", "is not an address of the form"),
        ("ssh:hv2", "is not an address of the form"),
        ("ssh://", "does not name a machine"),
        ("ssh://-oProxyCommand=x", "does not name a machine"),
        ("ssh://-x@hv2", "has no valid user"),
        ("ssh://@hv2", "has no valid user"),
        ("ssh://hv2:", "has no TCP port"),
        ("ssh://hv2:0", "has no TCP port"),
        ("ssh://hv2:65536", "has no TCP port"),
        ("ssh://hv2/path", "does not name a machine"),
        ("ssh://[fd00::2", "has no IPv6 address"),
        ("ssh://[hv2]", "has no IPv6 address"),
        ("ssh://fd00::2", "has no TCP port"),
        ("ssh://a@b@c", "does not name a machine"),
        ("ssh://hv2\n", "does not name a machine"),
    ],
)
def test_another_text_is_refused_with_a_sentence(spec: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse(spec)
    assert str(caught.value).startswith(f'"{spec}" ')


@given(st.text(max_size=40))
def test_no_part_of_an_address_looks_like_an_option(rest: str) -> None:
    try:
        address = parse(f"ssh://{rest}")
    except ValueError:
        return
    assert not address.name.startswith("-")
    assert not address.user.startswith("-")
    assert parse(str(address)) == address


def test_the_host_name_and_an_own_address_are_this_machine() -> None:
    assert resolve.is_here(SshAddress(socket.gethostname()))
    assert resolve.is_here(SshAddress("127.0.0.1"))
    assert resolve.is_here(SshAddress("127.0.0.1", port=22))


def test_a_forwarded_port_a_foreign_address_and_an_unknown_name_are_dialled() -> None:
    assert not resolve.is_here(SshAddress("127.0.0.1", port=2222))
    assert not resolve.is_here(SshAddress("192.0.2.1"))
    assert not resolve.is_here(SshAddress("hv2.invalid"))


def test_a_name_with_an_address_of_another_machine_too_is_dialled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        for address in ("127.0.0.1", "192.0.2.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    assert not resolve.is_here(SshAddress("hv"))


def test_another_user_of_this_machine_is_refused() -> None:
    resolve.require_same_user(SshAddress("here"), "ssh://here")
    resolve.require_same_user(SshAddress("here", getpass.getuser()), "ssh://..")
    with pytest.raises(PreconditionFailed, match="as user nobody-else, and coloctl runs as"):
        resolve.require_same_user(SshAddress("here", "nobody-else"), "ssh://nobody-else@here")
