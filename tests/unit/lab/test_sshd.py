"""OpenSSH for the lab's machines: which programs are started, and what both sides are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from coloctl.errors import ProvisionError
from coloctl.lab import layer, sshd
from coloctl.lab.sshd import OpenSsh


def layered(root: Path, *files: str) -> OpenSsh:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return OpenSsh(root)


def test_a_program_of_a_layer_finds_the_layers_libraries(tmp_path: Path) -> None:
    libraries = [tmp_path / where / "libwrap.so.0" for where in layer.LIBRARIES]
    own = layered(tmp_path, "usr/sbin/sshd", *(str(one.relative_to(tmp_path)) for one in libraries))
    folders = ":".join(str(one.parent) for one in libraries)
    assert own.sshd() == ["env", f"LD_LIBRARY_PATH={folders}", str(tmp_path / "usr/sbin/sshd")]


def test_a_program_that_is_in_no_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sshd, "_SBIN", str(tmp_path))
    with pytest.raises(ProvisionError, match=r"^sshd is neither on this machine nor"):
        OpenSsh(tmp_path).sshd()


def test_helper_programs_of_a_layer_are_named_where_it_has_them(tmp_path: Path) -> None:
    assert not layered(tmp_path, "usr/sbin/sshd").helpers()
    own = layered(tmp_path, "usr/lib/openssh/sshd-session", "usr/lib/openssh/sshd-auth")
    assert own.helpers() == [
        f"SshdSessionPath {tmp_path}/usr/lib/openssh/sshd-session",
        f"SshdAuthPath {tmp_path}/usr/lib/openssh/sshd-auth",
    ]
    assert not OpenSsh(Path("/")).helpers()


def test_the_server_takes_keys_alone_and_sets_the_environment(tmp_path: Path) -> None:
    text = sshd.server_config(
        OpenSsh(tmp_path), tmp_path / "key", tmp_path / "users", {"A": "b c", "D": "e"}
    )
    lines = text.splitlines()
    assert f"HostKey {tmp_path}/key" in lines
    assert f"AuthorizedKeysFile {tmp_path}/users" in lines
    assert "PasswordAuthentication no" in lines
    assert "UsePAM no" in lines
    assert lines[-1] == 'SetEnv "A=b c" "D=e"'
    assert "SetEnv" not in sshd.server_config(OpenSsh(tmp_path), tmp_path, tmp_path, {})


def test_the_client_uses_no_key_and_no_known_host_of_the_user(tmp_path: Path) -> None:
    text = sshd.client_config(tmp_path, {"hv1": ["HostName 10.68.0.11"], "hv2": []})
    assert text.startswith("Host hv1\n  HostName 10.68.0.11\nHost hv2\nHost *\n")
    for line in (
        f'IdentityFile "{tmp_path}/id_ed25519"',
        "IdentitiesOnly yes",
        "IdentityAgent none",
        f'UserKnownHostsFile "{tmp_path}/known_hosts"',
        "GlobalKnownHostsFile /dev/null",
        "StrictHostKeyChecking yes",
    ):
        assert f"  {line}\n" in text


@pytest.mark.parametrize(
    ("text", "suite"),
    [
        ('NAME="Debian"\nVERSION_CODENAME=trixie\n', "trixie"),
        ('VERSION_CODENAME="bookworm"\n', "bookworm"),
        ("VERSION_CODENAME=noble\n", None),
        ("NAME=Arch\n", None),
        (None, None),
    ],
)
def test_packages_come_for_the_suite_that_runs_here(
    text: str | None, suite: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = tmp_path / "os-release"
    if text is not None:
        release.write_text(text)
    monkeypatch.setattr(layer, "_OS_RELEASE", release)
    if suite is None:
        with pytest.raises(ProvisionError, match="on Debian only"):
            layer.own_suite()
    else:
        assert layer.own_suite() == suite
