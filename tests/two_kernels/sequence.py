"""Run a pair on hv1 and hv2, take its QEMUs and a machine away, and print what is seen.

Started by `run` in namespaces of its own. The supervisor runs here, on a third kernel, as
docs/two-machines.md recommends. The guest is iPXE. It fetches the numbers 1, 2, 3, ... over TCP
from this machine, one a second: the numbers show what the guest has released to its client.

Invariant of the run: the numbers never go back, and each failover leaves out one stretch of them at
most: those that the guest gave up while its answers were held. The exit code is 0 where all that
was expected was seen.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from two_kernels import machines, units
from two_kernels.client import Fetches
from two_kernels.machines import CLIENT, NAMES, Machine

BEGAN = time.monotonic()
PAIR = """\
name = "web"

[guest]
memory = "64MiB"
memory_max = "{memory_max}MiB"
accel = "{accel}"
kernel = "/usr/lib/ipxe/ipxe.lkrn"
append = "ifopen net0 && set net0/ip 10.77.0.10 && set net0/netmask 255.255.255.0 && \
chain http://{client}/count.ipxe"

[[disk]]
id = "disk0"
image = {{ a = "/var/lib/coloctl/images/web.qcow2", b = "/var/lib/coloctl/images/web.qcow2" }}

[[nic]]
id = "net0"
mac = "52:54:00:12:34:56"
bridge = "br0"

[node.a]
host = "ssh://root@hv1"
address = "10.66.0.1"

[node.b]
host = "ssh://root@hv2"
address = "10.66.0.2"

[checkpoint]
delay_ms = 10000
compare_timeout_ms = 5000

[detection]
heartbeat_ms = 500
suspect_after_ms = 6000
"""
#: Of each QEMU; twice `memory` and 256 MiB is the least that a pair file may name.
MEMORY_MAX_MIB = 400
#: In COLO on emulated machines; checkpoints that are due at the latest come every 10 s.
CHECKPOINTS = 5
PATIENCE_S = 900.0
#: So many show that the guest has booted.
FETCHES = 5
#: A guest whose answers are held gives up the connections that it opens meanwhile.
FAILOVERS = 4
#: The exit code of a verb whose act goes on after its own wait.
LATE = 6
IMAGES = "/var/lib/coloctl/images"
MADE = f"install -d -m 711 {IMAGES} && qemu-img create -q -f qcow2 {IMAGES}/web.qcow2 64M"


def note(text: str) -> None:
    """Print a line with the time since the run began."""
    passed = int(time.monotonic() - BEGAN)
    print(f"[{passed // 60:3}:{passed % 60:02}] {text}", flush=True)


def note_load() -> None:
    """Print the hour and how many processes want one of this machine's processors."""
    now = datetime.datetime.now(datetime.UTC)
    note(f"{now:%F %R} UTC, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


@dataclass
class Run:
    """The run: both machines, the client, and coloctl on this one."""

    folder: Path
    accel: str
    fetches: Fetches = field(default_factory=Fetches)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make keys and an environment."""
        self.ssh = machines.ssh_words(self.folder)
        self.environment = machines.environment(self.folder, self.ssh)
        self.machines = {name: Machine(name, self.folder, self.ssh) for name in NAMES}
        self.file = self.folder / "web.toml"
        values = {"accel": self.accel, "client": CLIENT, "memory_max": MEMORY_MAX_MIB}
        self.file.write_text(PAIR.format(**values))

    def coloctl(self, *words: str, check: bool = True, tries: int = 1) -> None:
        """Type a command as an operator would, and show what it prints.

        ``tries``: it is typed again where it failed, because a machine was too slow for it.
        """
        shown = ["web.toml" if word == str(self.file) else word for word in words]
        note(f"$ coloctl {shlex.join(shown)}")
        argv = [sys.executable, "-P", "-m", "coloctl.cli.main", *words]
        done = subprocess.run(
            argv, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        print(done.stdout.replace(str(self.folder), "~").rstrip(), flush=True)
        if not check or done.returncode in (0, 3, LATE):
            return
        if tries < 2:
            raise SystemExit(f"`coloctl {shlex.join(shown)}` ended with {done.returncode}")
        self.coloctl(*words, tries=tries - 1)

    def type_there(self, name: str, command: str) -> None:
        """Type a command on a machine."""
        note(f"{name}# {command}")
        self.machines[name].run(command)

    def status(self) -> dict[str, Any]:
        """Ask for the pair's status; {} where the supervisor gives no answer now."""
        argv = [sys.executable, "-P", "-m", "coloctl.cli.main", "status", "web", "-f", "json"]
        done = subprocess.run(
            argv, env=self.environment, capture_output=True, text=True, check=False
        )
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            return {}
        return answer

    def answer(self) -> dict[str, Any]:
        """Ask for the pair's status until the supervisor answers."""
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            if now := self.status():
                return now
            time.sleep(3)
        raise SystemExit("the supervisor gives no answer")

    def expect(self, true: bool, what: str) -> None:
        """Report a check, and what coloctl says where it fails; the run goes on."""
        note(f"{'ok   ' if true else 'WRONG'} {what}")
        if not true:
            self.wrong.append(what)
            for verb in ("status", "explain", "history"):
                self.coloctl(verb, "web", check=False)

    def until(self, protection: str, *, checkpoints: int = 0, generation: int = 0) -> None:
        """Wait for a state of the pair, and show each other one on the way."""
        give_up, shown = time.monotonic() + PATIENCE_S, ""
        while time.monotonic() < give_up:
            now = self.status()
            reached = now.get("protection", "")
            if reached and reached != shown:
                note(f"      {reached}: {now['reason']}")
                shown = reached
            if (
                reached == protection
                and now["generation"] >= generation
                and now["checkpoints"]["count"] >= checkpoints
            ):
                more = f", {now['checkpoints']['count']} checkpoints" if checkpoints else ""
                self.expect(True, f"the pair is {protection}{more}; fetched: {self.fetches.last}")
                return
            time.sleep(3)
        self.expect(False, f"the pair is not {protection} after {PATIENCE_S:.0f} s")
        self.coloctl("status", "web", check=False)
        raise SystemExit("the run ends here")

    def until_serving(self) -> None:
        """Wait until the guest has booted and fetches.

        A firmware that is protected while it starts may reset itself on the secondary alone, on
        machines whose KVM is emulated; the pair gives that secondary up and makes another one.
        """
        give_up = time.monotonic() + PATIENCE_S
        while self.fetches.last < FETCHES and time.monotonic() < give_up:
            time.sleep(3)
        self.expect(self.fetches.last >= FETCHES, f"the guest serves; fetched: {self.fetches.last}")

    def place_of(self, role: str) -> tuple[str, int]:
        """Return machine and process id of the QEMU with that role."""
        for node in self.answer()["nodes"]:
            if node["role"] == role:
                return node["host"].rpartition("@")[2], node["pid"]
        raise SystemExit(f"the pair has no {role}")


def prepare(run: Run) -> None:
    """Boot both machines and make them the hosts of the pair."""
    key = (run.folder / "id_ed25519.pub").read_text()
    began = time.monotonic()
    for machine in run.machines.values():
        machine.install(key)
        machine.boot()
    for machine in run.machines.values():
        machine.wait()
    note(f"both machines answer ssh after {time.monotonic() - began:.0f} s")
    facts = (
        "hostname; uname -sr; cut -c1-8 /proc/sys/kernel/random/boot_id; cat /etc/debian_version"
    )
    here = subprocess.run(facts, shell=True, capture_output=True, text=True, check=True).stdout
    note(f"this machine: {' '.join(here.split())}")
    for machine in run.machines.values():
        note(f"{machine.name}: {' '.join(machine.output(facts).split())}")
    for number, name in enumerate(NAMES, 1):
        run.type_there(name, MADE)
        run.coloctl(
            "host", "add", name, f"ssh://root@{name}", "--address", f"10.66.0.{number}", tries=4
        )


def lose_qemu(run: Run, role: str) -> None:
    """Kill the QEMU with that role, and wait until the pair is protected again."""
    before = run.answer()["generation"]
    name, pid = run.place_of(role)
    fetched, moment = run.fetches.last, time.monotonic()
    run.type_there(name, f"kill -9 {pid}  # QEMU of the {role}")
    run.until("colo", generation=before + 1, checkpoints=1)
    run.expect(run.fetches.last > fetched, f"fetched {fetched} before, {run.fetches.last} now")
    note(f"      longest time without a fetch: {run.fetches.longest_gap_s(moment):.1f} s")


def lose_machine(run: Run) -> None:
    """Take the power of the secondary's machine, and give it back."""
    before = run.answer()["generation"]
    name, _ = run.place_of("secondary")
    machine = run.machines[name]
    moment = time.monotonic()
    note(f"{name} loses its power (SIGKILL of the QEMU that is this machine)")
    machine.power_off()
    run.until("unprotected", generation=before + 1)
    alone = time.monotonic()
    time.sleep(30)
    many = run.fetches.after(alone)
    run.expect(many >= 5, f"the guest serves alone: {many} fetches in 30 s")
    run.coloctl("status", "web")
    note(f"      longest time without a fetch: {run.fetches.longest_gap_s(moment):.1f} s")
    note(f"{name} gets its power back")
    machine.boot()
    machine.wait()
    note(f"{name} answers ssh: {' '.join(machine.output('uptime -p').split())}")
    run.until("colo", generation=before + 1, checkpoints=1)


def check_units(run: Run) -> None:
    """Check on both machines that each QEMU runs in a scope of its own, with its limit."""
    for node in run.answer()["nodes"]:
        name, pid = node["host"].rpartition("@")[2], node["pid"]
        unit = units.look(run.machines[name], pid)
        wrong = unit.wrong(node["name"], MEMORY_MAX_MIB << 20)
        run.expect(
            not wrong,
            f"{name}: the {node['role']}'s QEMU {pid} is in {unit.name} as {units.ACCOUNT}, takes "
            f"{unit.taken_mib} of {MEMORY_MAX_MIB} MiB {' '.join(wrong)}".rstrip(),
        )


def reach_limit(run: Run) -> None:
    """Lower the secondary's limit below what it takes; wait until the pair is protected again.

    A primary's guest would be starved by its kernel for seconds before that ends the QEMU.
    """
    before = run.answer()["generation"]
    name, pid = run.place_of("secondary")
    unit = units.look(run.machines[name], pid)
    moment = time.monotonic()
    run.type_there(name, units.lowering(unit))
    run.until("colo", generation=before + 1, checkpoints=1)
    records = units.records_of_end(run.machines[name], unit)
    for record in records:
        note(f"      {name}: {record}")
    run.expect(f"Killed process {pid} " in " ".join(records), "the kernel ended it at its limit")
    many = run.fetches.after(moment)
    run.expect(many >= 5, f"the guest went on: {many} fetches since")
    note(f"      longest time without a fetch: {run.fetches.longest_gap_s(moment):.1f} s")
    check_units(run)


def main() -> int:
    """Run all of it; return the exit code."""
    parser = argparse.ArgumentParser(prog="tests/two_kernels/run", description=__doc__)
    parser.add_argument("--accel", default="kvm", choices=("kvm", "tcg"), help="of the guest")
    parser.add_argument("--folder", type=Path, required=True, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    note_load()
    machines.lay_networks()
    run = Run(chosen.folder, chosen.accel)
    prepare(run)
    run.coloctl("start", str(run.file), tries=4)
    run.until_serving()
    run.until("colo", checkpoints=CHECKPOINTS)
    check_units(run)
    lose_qemu(run, "secondary")
    lose_qemu(run, "primary")
    lose_machine(run)
    reach_limit(run)
    run.coloctl("status", "web")
    run.coloctl("history", "web")
    back, left_out = run.fetches.went_back(), run.fetches.left_out()
    run.expect(not back, f"{len(run.fetches.numbers)} numbers fetched, none of them again {back}")
    stretches = sum(number - 1 not in left_out for number in left_out)
    run.expect(stretches <= FAILOVERS, f"left out, one stretch a failover at most: {left_out}")
    run.coloctl("stop", "web", "--force", "--yes", check=False)
    note_load()
    note("valid" if not run.wrong else f"NOT valid: {'; '.join(run.wrong)}")
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
