"""Certificates of machines: QEMU's rules for them hold, and what a peer would refuse is named.

Method: real keys; both ends of a TLS connection between two machines run in this process, as
GnuTLS checks them in QEMU: chain, name, and both ends of a connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coloctl.certs import read, store
from coloctl.certs.issue import Credentials, new_authority, new_machine
from coloctl.errors import PreconditionFailed, UsageError

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
CA = new_authority("a CA", NOW)
OTHER_CA = new_authority("another CA", NOW)
HV1 = new_machine(CA, "hv1", ["10.66.0.1", "fd00::1"], NOW)
HV2 = new_machine(CA, "hv2", ["10.66.0.2"], NOW)
STRANGER = new_machine(OTHER_CA, "hv2", ["10.66.0.2"], NOW)


def test_the_subject_is_one_word_that_qemu_can_compare() -> None:
    found = read.facts(HV1.cert, "hv1")
    assert found.subject == "CN=hv1"
    assert (found.names, found.addresses) == (("hv1",), ("10.66.0.1", "fd00::1"))
    assert found.server and found.client
    assert found.since < NOW < found.until


def test_a_chain_leads_to_its_ca_and_to_no_other() -> None:
    assert read.issued_by(HV1.cert, CA.cert, "hv1")
    assert read.issued_by(HV1.cert, OTHER_CA.cert + CA.cert, "hv1")
    assert not read.issued_by(HV1.cert, OTHER_CA.cert, "hv1")
    assert not read.issued_by(STRANGER.cert, CA.cert, "hv2")


def test_a_key_belongs_to_its_certificate_alone() -> None:
    assert read.belongs(HV1.key, HV1.cert, "hv1")
    assert not read.belongs(HV2.key, HV1.cert, "hv1")
    with pytest.raises(PreconditionFailed, match="is not a private key in PEM"):
        read.belongs(b"nothing", HV1.cert, "hv1")


def test_a_certificate_never_outlives_its_ca() -> None:
    short = new_authority("short", NOW, days=10)
    machine = read.facts(new_machine(short, "hv1", [], NOW).cert, "hv1")
    assert machine.until == read.facts(short.cert, "the CA").until == NOW + timedelta(days=10)


def _context(credentials: Credentials, ca: bytes, folder: Path, *, server: bool) -> ssl.SSLContext:
    cert, key = folder / f"cert-{server}", folder / f"key-{server}"
    cert.write_bytes(credentials.cert)
    key.write_bytes(credentials.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode())
    context.load_cert_chain(cert, key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _shake_hands(folder: Path, name: str, server: Credentials, client: Credentials) -> None:
    """Hold a handshake in memory; raises `ssl.SSLError` where either end refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    listening = _context(server, CA.cert, folder, server=True).wrap_bio(
        to_server, to_client, server_side=True
    )
    calling = _context(client, CA.cert, folder, server=False).wrap_bio(
        to_client, to_server, server_hostname=name
    )
    left: list[Callable[[], object]] = [calling.do_handshake, listening.do_handshake]
    for _ in range(20):
        for end in list(left):
            try:
                end()
            except ssl.SSLWantReadError:
                continue
            left.remove(end)
        if not left:
            return
    raise AssertionError("the handshake never ends")


@pytest.mark.parametrize("name", ["hv1", "10.66.0.1", "fd00::1"])
def test_both_machines_accept_each_other(tmp_path: Path, name: str) -> None:
    _shake_hands(tmp_path, name, HV1, HV2)


@pytest.mark.parametrize(
    ("name", "server", "client"),
    [("hv2", HV1, HV2), ("10.66.0.9", HV1, HV2), ("hv1", HV1, STRANGER), ("hv2", STRANGER, HV1)],
)
def test_another_name_address_or_ca_is_refused(
    tmp_path: Path, name: str, server: Credentials, client: Credentials
) -> None:
    with pytest.raises(ssl.SSLError):
        _shake_hands(tmp_path, name, server, client)


@pytest.mark.parametrize(
    ("name", "address", "at", "sentence"),
    [
        (
            "hv1",
            "10.66.0.1",
            NOW + timedelta(days=400),
            "The certificate of hv1 ended on 2027-11-29",
        ),
        (
            "hv1",
            "",
            NOW - timedelta(days=2),
            "The certificate of hv1 is not valid before 2026-11-28",
        ),
        ("hv9", "", NOW, "The certificate on hv1 is for hv1, not for hv9."),
        ("hv1", "10.66.0.7", NOW, "The certificate on hv1 does not name the address 10.66.0.7."),
    ],
)
def test_what_a_peer_would_refuse_is_a_sentence_with_a_hint(
    name: str, address: str, at: datetime, sentence: str
) -> None:
    found = read.facts(HV1.cert, "hv1")
    with pytest.raises(PreconditionFailed) as caught:
        read.require_usable(found, "hv1", name=name, address=address, now=at)
    assert caught.value.message.startswith(sentence)
    assert caught.value.hint


def test_one_that_serves_is_accepted() -> None:
    found = read.facts(HV1.cert, "hv1")
    read.require_usable(found, "hv1", name="hv1", address="fd00:0::1", now=NOW)


@settings(max_examples=25, deadline=None)
@given(
    name=st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,20}[A-Za-z0-9])?", fullmatch=True),
    addresses=st.lists(
        st.ip_addresses().filter(lambda one: one.version == 4 or not one.is_link_local),
        max_size=4,
        unique=True,
    ),
)
def test_every_name_and_address_that_is_accepted_comes_back(
    name: str, addresses: list[object]
) -> None:
    text = f"{name}={','.join(map(str, addresses))}" if addresses else name
    parsed, listed = store.parse_machine(text)
    found = read.facts(new_machine(CA, parsed, listed, NOW).cert, name)
    assert (found.name, found.names, found.addresses) == (name, (name,), listed)


@pytest.mark.parametrize(
    "text", ["", "a b", "-x", "a_b", "../x", "a" * 65, "hv1=10.0.0", "=1.1.1.1", "hv1=fe80::1"]
)
def test_a_name_or_address_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        store.parse_machine(text)
    assert caught.value.hint


def test_the_files_of_a_ca_and_a_machine_are_private(tmp_path: Path) -> None:
    authority = store.Authority(tmp_path / "ca")
    authority.make(NOW)
    made = authority.provide("hv1", ["10.66.0.1"], NOW)
    assert made.new and made.folder == tmp_path / "ca/machines/hv1"
    for file in tmp_path.rglob("*"):
        assert file.stat().st_mode & 0o777 == (0o700 if file.is_dir() else 0o600)
    assert {one.name for one in made.folder.iterdir()} == {"ca-cert.pem", "cert.pem", "key.pem"}
    key = (tmp_path / "ca/ca-key.pem").read_bytes()
    assert key not in b"".join(one.read_bytes() for one in made.folder.iterdir())


def test_a_certificate_that_serves_stays_and_another_is_made_anew(tmp_path: Path) -> None:
    authority = store.Authority(tmp_path)
    authority.make(NOW)
    first = authority.provide("hv1", ["10.66.0.1"], NOW)
    assert authority.provide("hv1", ["10.66.0.1"], NOW).facts == first.facts
    moved = authority.provide("hv1", ["10.66.0.5"], NOW)
    assert moved.new and moved.facts.addresses == ("10.66.0.5",)
    renewed = authority.provide("hv1", ["10.66.0.5"], NOW, renew=True)
    assert renewed.facts.serial != moved.facts.serial
    (moved.folder / store.KEY).write_bytes(HV1.key)  # as after a crash between both files
    assert authority.provide("hv1", ["10.66.0.5"], NOW).new
    assert authority.machines() == ["hv1"]


def test_a_damaged_or_ended_ca_is_a_sentence(tmp_path: Path) -> None:
    authority = store.Authority(tmp_path)
    with pytest.raises(PreconditionFailed, match=r"There is no .*ca-cert\.pem"):
        authority.provide("hv1", [], NOW)
    authority.make(NOW)
    with pytest.raises(PreconditionFailed, match="ended on 2036-11-26"):
        authority.provide("hv1", [], NOW + timedelta(days=4000))
    (tmp_path / "ca-key.pem").write_bytes(OTHER_CA.key)
    with pytest.raises(PreconditionFailed, match="do not belong to each other"):
        authority.provide("hv1", [], NOW)
    (tmp_path / "ca-cert.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(PreconditionFailed, match="is not a certificate in PEM"):
        authority.provide("hv1", [], NOW)
