"""Namespaces of the lab as hosts behind a real ssh, without a daemon, a port or a network for it.

`serve` writes keys and configurations; `SshHosts.command` is the ssh to use (``COLOCTL_SSH``). Each
connection starts an sshd of its own in the host's network namespace, by ssh's ProxyCommand. It has
a mount namespace too: there is a user ``sshd`` in /etc/passwd, and a folder /run/sshd.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coloctl.lab import guest, netns, qemu, rootless, sample, sshd
from coloctl.lab.network import Lab

#: Why a test that needs `serve` is skipped.
NEEDS_ROOT = "sshd changes its user, which a user namespace of one user does not allow"

#: $1 the namespace, $2 the folder of the host. The words of sshd follow.
#: /run becomes a tmpfs that shows all that is in it, so that /run/sshd is there in here only.
ENTER = r"""#!/bin/sh
set -eu
namespace=$1 folder=$2; shift 2
exec nsenter --net="$namespace" -- unshare --mount --propagation slave -- sh -eu -c '
folder=$1; shift
mount --bind "$folder/passwd" /etc/passwd
mount --rbind /run "$folder/run"
mount -t tmpfs -o mode=755 run /run
for old in "$folder"/run/* "$folder"/run/.[!.]*; do
  new=/run/${old##*/}
  [ "$new" = /run/sshd ] && continue
  if [ -L "$old" ]; then cp -P "$old" "$new"
  elif [ -d "$old" ]; then mkdir -p "$new"; mount --rbind "$old" "$new"
  elif [ -e "$old" ]; then : >"$new"; mount --bind "$old" "$new"; fi
done
mkdir -p -m 755 /run/sshd
umount -l "$folder/run"
exec "$@" 2>>"$folder/sshd.log"' sh "$folder" "$@"
"""


@dataclass(frozen=True)
class SshHosts:
    """Hosts that a client reaches by ``command``, whose configuration is ``config``."""

    folder: Path
    command: list[str]

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    @property
    def environment(self) -> dict[str, str]:
        """What coloctl needs in its environment to use them."""
        return {"COLOCTL_SSH": shlex.join(self.command)}

    def log(self, host: str) -> Path:
        """What the sshds of that host have complained of."""
        return self.folder / host / "sshd.log"


def refused() -> str | None:
    """Say why there can be no such host here, if so."""
    return NEEDS_ROOT if os.geteuid() != 0 or rootless.inside() else None


def serve(
    folder: Path,
    hosts: Mapping[str, str],
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> SshHosts:
    """Make each of ``hosts``, a name for ssh with a network namespace, reachable.

    What a client runs there has this run's mark and COLOCTL variables in its environment, and
    those of ``environments`` for its host. The host's state and registry are those of this run
    unless that says otherwise. Nothing runs while no client is connected.
    """
    openssh = sshd.provide()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (enter := folder / "enter").write_text(ENTER)
    enter.chmod(0o700)
    user = sshd.make_key(openssh, folder / "id_ed25519", "coloctl test")
    (folder / "authorized_keys").write_text(f"{user}\n")
    reached, known = {}, []
    for name, namespace in hosts.items():
        home = folder / name
        (home / "run").mkdir(mode=0o700, parents=True)
        key = sshd.make_key(openssh, home / "host_key", name)
        known.append(f"{name} {key}\n")
        (home / "passwd").write_text(_passwd())
        own = {**_environment(), **(environments or {}).get(name, {})}
        config = home / "sshd_config"
        config.write_text(
            sshd.server_config(openssh, home / "host_key", folder / "authorized_keys", own)
        )
        words = [enter, netns.path(namespace), home, *openssh.sshd(), "-i", "-e", "-f", config]
        reached[name] = [f"ProxyCommand {shlex.join(map(str, words))}"]
    (folder / "known_hosts").write_text("".join(known))
    (folder / "ssh_config").write_text(sshd.client_config(folder, reached))
    return SshHosts(folder, sshd.client_words(openssh, folder / "ssh_config"))


def _passwd() -> str:
    """This machine's users, and the one as which sshd talks to who is not known yet."""
    users = Path("/etc/passwd").read_text()
    if any(line.startswith("sshd:") for line in users.splitlines()):
        return users
    return f"{users}sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"


def _environment() -> dict[str, str]:
    passed = (name for name in os.environ if name.startswith("COLOCTL_") or name == "TMPDIR")
    return {name: os.environ[name] for name in passed if name != "COLOCTL_SSH"}


def write_pair(folder: Path, lab: Lab, image: guest.GuestImage, build: qemu.Build) -> Path:
    """A pair file for the lab's guest whose node b is reached over ssh, not encrypted.

    The path of its disk is written as it is on that machine.
    """
    path = sample.write_pair(
        folder / "web.toml",
        name="web",
        lab=lab,
        guest=image,
        qemu=build.binary,
        accel="tcg",
        checkpoint_delay_ms=500,
        tables={"tls": {"mode": "off"}},
    )
    text = path.read_text().replace(f"netns:{lab.host_b}", "ssh://host-b")
    path.write_text(text.replace('b = "web-b.qcow2"', f'b = "{folder / "web-b.qcow2"}"'))
    return path
