"""Provide OpenSSH for the lab's machines: programs, keys made for one lab, and both configurations.

Called by `lab.machine_store` and `lab.machines`; calls `lab.layer` for the programs that this
machine is without. No service is installed or started: `sshd -i` serves the one connection that it
is started with.

Invariant: only keys and configurations in the given folder are used, never a user's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coloctl.errors import ProvisionError
from coloctl.lab import layer
from coloctl.lab.progress import Report, silent

PACKAGES = ("openssh-server", "openssh-client")

#: Where programs lie that only root uses; not every user's PATH has them.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_KEYGEN_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class OpenSsh:
    """OpenSSH's programs; ``root`` is the layer that holds them, "/" where this machine does."""

    root: Path

    def sshd(self) -> list[str]:
        """Return the words that start sshd."""
        return self._words("sshd")

    def ssh(self) -> list[str]:
        """Return the words that start ssh."""
        return self._words("ssh")

    def keygen(self) -> list[str]:
        """Return the words that start ssh-keygen."""
        return self._words("ssh-keygen")

    def helpers(self) -> list[str]:
        """Return the lines of sshd's configuration that name its helper programs in a layer.

        OpenSSH 10.0 starts two of them for each connection. 9.2 has none.
        """
        options = {"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"}
        places = {name: self.root / "usr/lib/openssh" / file for name, file in options.items()}
        if self.root == Path("/"):
            return []
        return [f"{name} {place}" for name, place in places.items() if place.is_file()]

    def _words(self, program: str) -> list[str]:
        places = (self.root / where / program for where in ("usr/sbin", "usr/bin"))
        found = next((place for place in places if place.is_file()), None)
        if found is not None and self.root != Path("/"):
            folders = ":".join(map(str, layer.libraries(self.root)))
            return ["env", f"LD_LIBRARY_PATH={folders}", str(found)]
        if (own := _here(program)) is not None:
            return [own]
        raise ProvisionError(
            f"{program} is neither on this machine nor among the packages that were fetched.",
            hint="apt-get install openssh-server openssh-client",
        )


def provide(*, report: Report = silent) -> OpenSsh:
    """Return OpenSSH's programs: this machine's own, or else those of a layer.

    Raises `ProvisionError` where they are missing and cannot be fetched.
    """
    if all(map(_here, ("sshd", "ssh", "ssh-keygen"))):
        return OpenSsh(Path("/"))
    return OpenSsh(layer.provide(PACKAGES, report=report))


def _here(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def make_key(openssh: OpenSsh, file: Path, comment: str) -> str:
    """Make an ed25519 key without a passphrase where ``file`` is missing; return its public half.

    Raises `ProvisionError` when ssh-keygen does not make it.
    """
    if not file.exists():
        command = [
            *openssh.keygen(),
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            comment,
            "-f",
            str(file),
        ]
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=_KEYGEN_DEADLINE_S,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ProvisionError(f"The key {file} cannot be made by ssh-keygen: {error}.") from None
    return file.with_name(f"{file.name}.pub").read_text().strip()


def server_config(
    openssh: OpenSsh,
    host_key: Path,
    authorized: Path | str,
    environment: Mapping[str, str],
    *,
    strict: bool = False,
) -> str:
    """Return sshd's configuration: that key for the host, keys alone for users, no PAM.

    ``environment`` is set for what a client runs. ``strict`` refuses keys in a folder that others
    can change, as a temporary one or one below it is.
    """
    lines = [
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {authorized}",
        "PermitRootLogin prohibit-password",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "UsePAM no",
        f"StrictModes {'yes' if strict else 'no'}",
        "PidFile none",
        "PrintMotd no",
        "PrintLastLog no",
        "Subsystem sftp internal-sftp",
        *openssh.helpers(),
    ]
    if environment:
        values = " ".join(f'"{name}={value}"' for name, value in environment.items())
        lines.append(f"SetEnv {values}")
    return "\n".join((*lines, ""))


def client_config(folder: Path, hosts: Mapping[str, Sequence[str]]) -> str:
    """Return ssh's configuration for the hosts, with the key and the known hosts of ``folder``.

    Each name of ``hosts`` has the lines that say how it is reached.
    """
    lines = [
        line
        for name, reached in hosts.items()
        for line in (f"Host {name}", *(f"  {one}" for one in reached))
    ]
    common = (
        "Host *",
        "  User root",
        f'  IdentityFile "{folder / "id_ed25519"}"',
        "  IdentitiesOnly yes",
        "  IdentityAgent none",
        f'  UserKnownHostsFile "{folder / "known_hosts"}"',
        "  GlobalKnownHostsFile /dev/null",
        "  StrictHostKeyChecking yes",
        "  UpdateHostKeys no",
        "  CheckHostIP no",
    )
    return "\n".join((*lines, *common, ""))


def client_words(openssh: OpenSsh, config: Path) -> list[str]:
    """Return the words that start ssh with ``config``, as `COLOCTL_SSH` takes them."""
    return [*openssh.ssh(), "-F", str(config)]
