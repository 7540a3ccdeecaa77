"""Protect a cold Debian with PostgreSQL again and again, move it, kill its primary, and audit it.

Called by ``make campaign-postgres``. Each round boots the guest of `debian.py` from a fresh disk
on a fresh pair under TCG, protects it before its first load, lets clients transfer money,
switches over, waits until it is protected again, kills the primary's QEMU, and audits. A round is
sound when no guest said a word of damage, no acknowledged transfer is missing and the sum is right.

``--without-plugin`` runs the same without the fresh-code plugin. One line of JSON per round goes to
standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bank
import debian

from coloctl import paths
from coloctl.chaos.players import choose
from coloctl.lab import layout
from coloctl.lab.network import Lab
from coloctl.lab.sample import guest_mac
from coloctl.machine import image

CLIENTS = 8
PHASE_S = 20.0
START_S, PROTECT_S = 900, 600
COLOCTL = [str(Path(sys.executable).with_name("coloctl"))]

#: What a guest says on its console whose memory was damaged.
DAMAGE = re.compile(
    r"segfault|general protection|invalid opcode|trap divide|Oops|kernel BUG|BUG:|Kernel panic"
    r"|soft lockup|PANIC:|terminated by signal|crash of another server process"
    r"|not properly shut down|database system was interrupted|is not a head|Corrupt"
)

PAIR = """\
name = "{name}"
[guest]
memory = "768MiB"
cpus = 2
accel = "tcg"
qemu = "{qemu}"
kernel = "{kernel}"
initrd = "{initrd}"
append = "{append}"
ready_line = "{ready_line}"
[[disk]]
id = "disk0"
image = {{ a = "{folder}/a.qcow2", b = "{folder}/b.qcow2" }}
[[nic]]
id = "hn0"
mac = "{mac}"
tap = {{ a = "{tap_a}", b = "{tap_b}", bridge = "{bridge}" }}
[node.a]
host = "netns:{host_a}"
address = "{address_a}"
[node.b]
host = "netns:{host_b}"
address = "{address_b}"
[replication]
channel = "fd"
"""
APPEND = (
    "root=/dev/vda rw console=ttyS0,115200 ipv6.disable=1 nowatchdog tsc=reliable no_timer_check "
    "mitigations=off random.trust_cpu=on cryptomgr.notests systemd.show_status=false"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--name", default="campaign", help="of the lab and of the pair")
    parser.add_argument("--without-plugin", action="store_true")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    binary, accel = choose("11.1", _say)
    if accel != "tcg":
        _say("KVM runs code here: the campaign asks for TCG all the same")
    guest = debian.provide(image.tool(binary), _say)
    sound = 0
    for number in range(1, asked.rounds + 1):
        with tempfile.TemporaryDirectory(prefix="coloctl-campaign-") as folder:
            told = Round(asked, binary, guest, Path(folder)).play()
        print(json.dumps({"round": number, "plugin": not asked.without_plugin, **told}), flush=True)
        sound += told["sound"]
    _say(f"{sound} of {asked.rounds} rounds are sound")
    return 0 if sound == asked.rounds else 1


class Round:
    """One life of the guest, from its first boot to the audit."""

    def __init__(self, asked: argparse.Namespace, binary: Path, guest: Path, folder: Path) -> None:
        self.name, self.binary, self.guest, self.folder = asked.name, binary, guest, folder
        self.plugin = not asked.without_plugin
        self.told: dict[str, Any] = {"sound": False}
        self.env = dict(os.environ)
        if not self.plugin:  # an empty cache has none, and the pair file names the QEMU
            self.env["COLOCTL_CACHE_DIR"] = str(folder / "cache")

    def play(self) -> dict[str, Any]:
        """Run the round; whatever ended it early is told, and nothing is left running."""
        lab = Lab.up(self.name)
        try:
            self._play(lab)
        except (subprocess.SubprocessError, RuntimeError, OSError) as error:
            self.told["ended"] = str(error)
        finally:
            self.told["damage"] = self._damage()
            self._coloctl("stop", self.name, "--force", "--yes", check=False)
            lab.down()
        self.told["sound"] = not (
            {"ended", "missing"} & {key for key, value in self.told.items() if value}
            or self.told["damage"]
            or self.told.get("sum") != bank.ACCOUNTS * bank.OPENING
        )
        return self.told

    def _play(self, lab: Lab) -> None:
        for node in ("a", "b"):
            shutil.copyfile(self.guest / debian.DISK, self.folder / f"{node}.qcow2")
        began = time.monotonic()
        self._coloctl("start", str(self._pair_file(lab)), f"--wait={START_S}")
        self.told["start_s"] = round(time.monotonic() - began, 1)
        clients = self._client("run", str(CLIENTS))
        try:
            assert clients.stdout is not None
            if clients.stdout.readline().strip() != "working":
                raise RuntimeError("The clients did not begin to work.")
            marks = [time.monotonic()]
            self._phase(marks)
            self.told["pause_p50_ms"] = self._view()["checkpoints"]["pause_p50_ms"]
            force = [] if self.plugin else ["--force"]
            self._coloctl("switchover", self.name, "--yes", f"--wait={PROTECT_S}", *force)
            self._phase(marks)
            self._coloctl("wait", self.name, "--for", "colo", "--timeout", str(PROTECT_S))
            os.kill(self._primary()["pid"], signal.SIGKILL)
            self._phase(marks)
        finally:
            try:
                out, _ = clients.communicate(timeout=180)
            except subprocess.TimeoutExpired:
                clients.kill()
                out, _ = clients.communicate()
        if clients.returncode:
            raise RuntimeError("The clients did not come to their end: the guest serves no more.")
        self._count(json.loads(out.splitlines()[-1]), marks)

    def _phase(self, marks: list[float]) -> None:
        time.sleep(PHASE_S)
        marks.append(time.monotonic())

    def _count(self, seen: dict[str, Any], marks: Sequence[float]) -> None:
        done = self._client("audit")
        out, _ = done.communicate(timeout=180)
        if done.returncode:
            raise RuntimeError("The database did not answer the audit.")
        audit = json.loads(out)
        there = {tuple(row) for row in audit["ledger"]}
        acknowledged = [
            (int(client), number, began, ended)
            for client, transfers in seen["acknowledged"].items()
            for number, began, ended in transfers
        ]
        protected = [one for one in acknowledged if marks[0] <= one[3] < marks[1]]
        self.told |= {
            "acknowledged": len(acknowledged),
            "missing": sum((client, n) not in there for client, n, _, _ in acknowledged),
            "sum": audit["sum"],
            "per_s_protected": round(len(protected) / (marks[1] - marks[0]), 1),
            "slowest_s": round(max((e - b for _, _, b, e in acknowledged), default=0), 2),
            "cut": len(seen["errors"]),
            "errors": seen["errors"][:3],
        }

    def _damage(self) -> list[str]:
        """Every line of both consoles that only a damaged guest writes."""
        found = []
        for node in ("a", "b"):
            console = paths.pair_dir(self.name) / node / "console.log"
            if console.exists():
                for line in console.read_text(errors="replace").splitlines():
                    if DAMAGE.search(line):
                        found.append(f"{node}: {line.strip()[:160]}")
        return found[:12]

    def _view(self) -> dict[str, Any]:
        view: dict[str, Any] = json.loads(self._coloctl("status", self.name, "-f", "json"))
        return view

    def _primary(self) -> dict[str, Any]:
        nodes: list[dict[str, Any]] = self._view()["nodes"]
        return next(node for node in nodes if node["role"] == "primary")

    def _client(self, *words: str) -> subprocess.Popen[str]:
        verb, *rest = words
        script = Path(__file__).with_name("bank.py")
        return Lab.open(self.name).popen(
            [sys.executable, str(script), verb, layout.GUEST, *rest],
            "client",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _coloctl(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            [*COLOCTL, *words], env=self.env, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-2:]
            raise RuntimeError(f"coloctl {words[0]}: {' / '.join(last)}")
        return done.stdout

    def _pair_file(self, lab: Lab) -> Path:
        file = self.folder / f"{self.name}.toml"
        file.write_text(
            PAIR.format(
                name=self.name,
                qemu=self.binary,
                kernel=self.guest / debian.KERNEL,
                initrd=self.guest / debian.INITRD,
                append=APPEND,
                ready_line=debian.READY_LINE,
                folder=self.folder,
                mac=guest_mac(),
                tap_a=layout.TAPS["host-a"],
                tap_b=layout.TAPS["host-b"],
                bridge=layout.BRIDGE,
                host_a=lab.host_a,
                host_b=lab.host_b,
                address_a=layout.REPLICATION_A,
                address_b=layout.REPLICATION_B,
            )
        )
        return file


def _say(what: object) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
