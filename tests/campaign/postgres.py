"""One round of the campaign on PostgreSQL: a life of the guest from its first boot to the audit.

Called by `campaign.py`. Invariant: behind a round no process, namespace, tap or file of it is
left, however it ended; the logs of a round that was not sound are the exception, and are named.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bank
import debian

from coloctl import interrupts, paths
from coloctl.chaos.evidence import remains
from coloctl.chaos.run import testbed
from coloctl.errors import LabError
from coloctl.lab import layout
from coloctl.lab.network import Lab
from coloctl.lab.sample import guest_mac

#: Hears what is being done.
Tell = Callable[[str], None]

CLIENTS = 8
PHASE_S = 20.0
START_S, PROTECT_S = 900, 600
#: A client waits 60 s for a connection; a verb needs a few seconds to undo what it began.
CLIENTS_END_S, VERB_END_S = 180.0, 60.0
COLOCTL = [str(Path(sys.executable).with_name("coloctl"))]

#: What a guest says on its console whose memory was damaged.
DAMAGE = re.compile(
    r"segfault|general protection|invalid opcode|trap divide|Oops|kernel BUG|BUG:|Kernel panic"
    r"|soft lockup|PANIC:|terminated by signal|crash of another server process"
    r"|not properly shut down|database system was interrupted|is not a head|Corrupt"
)
#: What the journal holds for each secondary that was given up because its guest had diverged.
GIVEN_UP = re.compile(r'"missed": ?"divergence"')

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


class Round:
    """One life of the guest; ``plugin``: its QEMUs load the fresh-code plugin."""

    def __init__(self, plays: testbed.Testbed, plugin: bool, tell: Tell) -> None:
        self.plays, self.name, self.plugin, self.tell = plays, plays.name, plugin, tell
        self.told: dict[str, Any] = {"sound": False}
        self.env: dict[str, str] = {}

    def play(self) -> dict[str, Any]:
        """Run the round and return what it told, with a word on what ended it early, if anything.

        Raises `ColoctlError` where nothing could be set up. An interruption is let through once
        nothing is left running.
        """
        with testbed.folder(self.plays) as folder, testbed.lab(self.plays) as lab:
            self.env = dict(os.environ)
            if not self.plugin:  # an empty cache has none, and the pair file names the QEMU
                self.env["COLOCTL_CACHE_DIR"] = str(folder / "cache")
            with self._cleaned_up():
                try:
                    self._play(lab, folder)
                except (subprocess.SubprocessError, RuntimeError, OSError, LabError) as error:
                    self.told["ended"] = str(error)
        if left := remains.remains(self.name):
            self.told["left"] = left
        return self.told

    @contextlib.contextmanager
    def _cleaned_up(self) -> Iterator[None]:
        """Judge the round and end its pair behind the block, whatever ended that."""
        ended = True
        try:
            yield
            ended = False
        finally:
            with interrupts.deferred(raise_after=not ended):
                self.tell("the pair is stopped")
                self._judge()
                self._coloctl("stop", self.name, "--force", "--yes", check=False)
                pair = paths.pair_dir(self.name)
                if not ended and not self.told["sound"]:
                    self.told["kept"] = str(_keep(pair))
                shutil.rmtree(pair, ignore_errors=True)

    def _judge(self) -> None:
        """Say whether the round was sound: no word of damage, nothing missing, the sum right."""
        pair = paths.pair_dir(self.name)
        journal = pair / "journal.jsonl"
        written = journal.read_text(errors="replace") if journal.exists() else ""
        self.told["damage"] = _damage(pair)
        self.told["given_up"] = len(GIVEN_UP.findall(written))
        self.told["sound"] = not (
            "ended" in self.told
            or self.told["damage"]
            or self.told.get("missing")
            or not self.told.get("sum_right")
        )

    def _play(self, lab: Lab, folder: Path) -> None:
        for node in ("a", "b"):
            shutil.copyfile(self.plays.guest.disk, folder / f"{node}.qcow2")
        began = time.monotonic()
        self.tell("Debian boots from a fresh disk and is protected")
        self._coloctl("start", str(self._pair_file(lab, folder)), f"--wait={START_S}")
        self.told["start_s"] = round(time.monotonic() - began, 1)
        with self._clients(lab, "run", str(CLIENTS)) as clients:
            assert clients.stdout is not None
            if clients.stdout.readline().strip() != "working":
                raise RuntimeError("The clients did not begin to work.")
            marks = [time.monotonic()]
            self._phase(marks, f"protected; {CLIENTS} clients transfer money")
            self.told["pause_p50_ms"] = self._view()["checkpoints"]["pause_p50_ms"]
            self.tell("switchover")
            force = [] if self.plugin else ["--force"]
            self._coloctl("switchover", self.name, "--yes", f"--wait={PROTECT_S}", *force)
            self._phase(marks, "moved; the clients go on")
            self.tell("protected again? then its primary is killed")
            self._coloctl("wait", self.name, "--for", "colo", "--timeout", str(PROTECT_S))
            os.kill(self._primary()["pid"], signal.SIGKILL)
            self._phase(marks, "killed; the clients go on")
            try:
                out, _ = clients.communicate(timeout=CLIENTS_END_S)
            except subprocess.TimeoutExpired:
                raise RuntimeError(
                    "The clients came to no end: the guest does not serve."
                ) from None
        if clients.returncode:
            raise RuntimeError("The clients failed in their own program.")
        self._count(lab, json.loads(out.splitlines()[-1]), marks)

    def _phase(self, marks: list[float], what: str) -> None:
        self.tell(what)
        time.sleep(PHASE_S)
        marks.append(time.monotonic())

    def _count(self, lab: Lab, seen: dict[str, Any], marks: Sequence[float]) -> None:
        self.tell("the books are audited")
        with self._clients(lab, "audit") as auditor:
            out, _ = auditor.communicate(timeout=CLIENTS_END_S)
        if auditor.returncode:
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
            "sum_right": audit["sum"] == bank.ACCOUNTS * bank.OPENING,
            "per_s_protected": round(len(protected) / (marks[1] - marks[0]), 1),
            "slowest_s": round(max((e - b for _, _, b, e in acknowledged), default=0), 2),
            "first_s": seen["first"],
            "cut": len(seen["errors"]),
            "errors": seen["errors"][:3],
        }

    def _view(self) -> dict[str, Any]:
        view: dict[str, Any] = json.loads(self._coloctl("status", self.name, "-f", "json"))
        return view

    def _primary(self) -> dict[str, Any]:
        nodes: list[dict[str, Any]] = self._view()["nodes"]
        return next(node for node in nodes if node["role"] == "primary")

    @contextlib.contextmanager
    def _clients(self, lab: Lab, verb: str, *rest: str) -> Iterator[subprocess.Popen[str]]:
        """The program of `bank.py` runs in the client's namespace, and not behind the block."""
        script = Path(__file__).with_name("bank.py")
        with lab.popen(
            [sys.executable, str(script), verb, layout.GUEST, *rest],
            "client",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def _coloctl(self, *words: str, check: bool = True) -> str:
        """Run a verb and return what it printed.

        A terminal's Ctrl-C does not reach it, so that `stop` runs to its end. A verb that is
        interrupted with the round gets the time to undo what it began.
        """
        with subprocess.Popen(
            [*COLOCTL, *words],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate()
            except BaseException:
                with interrupts.deferred(raise_after=False):
                    process.send_signal(signal.SIGINT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.communicate(timeout=VERB_END_S)
                    process.kill()
                raise
        if check and process.returncode:
            last = (out + err).strip().splitlines()[-2:]
            raise RuntimeError(f"coloctl {words[0]}: {' / '.join(last)}")
        return out

    def _pair_file(self, lab: Lab, folder: Path) -> Path:
        file = folder / f"{self.name}.toml"
        file.write_text(
            PAIR.format(
                name=self.name,
                qemu=self.plays.qemu,
                kernel=self.plays.guest.kernel,
                initrd=self.plays.guest.initrd,
                append=self.plays.guest.append,
                ready_line=debian.READY_LINE,
                folder=folder,
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


def _damage(pair: Path) -> list[str]:
    """Every line of both consoles that only a damaged guest writes."""
    found = []
    for node in ("a", "b"):
        console = pair / node / "console.log"
        if console.exists():
            for line in console.read_text(errors="replace").splitlines():
                if DAMAGE.search(line):
                    found.append(f"{node}: {line.strip()[:160]}")
    return found[:12]


def _keep(pair: Path) -> Path:
    """Copy the logs of a pair to a folder of their own and name that."""
    kept = Path(tempfile.mkdtemp(prefix=f"coloctl-{pair.name}-logs-"))
    for file in (*pair.glob("*.jsonl"), *pair.glob("*.log"), *pair.glob("?/*.log")):
        shutil.copyfile(file, kept / "-".join(file.relative_to(pair).parts))
    return kept
