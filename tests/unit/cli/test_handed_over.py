"""A supervisor that a watcher starts imports little, so that it is soon at work."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import make_spec

from coloctl import paths
from coloctl.cli import handed_over
from coloctl.colo.ground import Facts, NodeFacts
from coloctl.control.client import ControlClient
from coloctl.control.daemon.spawn import claim
from coloctl.errors import UsageError
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.vm import Binary

pytestmark = pytest.mark.unit

#: Packages of others that a supervisor may need until it is at work: it talks QMP.
NEEDED = {"qemu"}
#: Parts of coloctl that are for other programs.
OTHERS = {"api", "bench", "certs", "chaos", "check", "lab", "metrics", "pairfile"}
#: Runs the program, and writes down what it has imported at its end.
SCRIPT = (
    "import atexit, sys; file = sys.argv.pop(); "
    "atexit.register(lambda: print(*sys.modules, file=open(file, 'w'))); "
    "from coloctl.cli.main import main; main()"
)
QEMU = Binary(
    Path("/usr/bin/qemu-system-x86_64"), Dialect("7.2.22", ReturnPath.REQUIRED, "reconnect")
)
NODE = NodeFacts(QEMU, "tcg", Path("qemu-img"))
FACTS = Facts({"a": NODE, "b": NODE}, "tcg")


def test_a_supervisor_of_a_pair_that_was_started_imports_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "registry" / "disks"))
    made, written = make_spec(), tmp_path / "modules"
    nodes = {node: replace(one, host="local") for node, one in made.nodes.items()}
    spec = replace(made, nodes=nodes)
    with claim(spec, FACTS) as listener:
        fd = listener.fileno()
        argv = [sys.executable, "-c", SCRIPT, "run", "/no/such.toml", "--control-fd", str(fd)]
        with subprocess.Popen([*argv, str(written)], pass_fds=(fd,)) as process:
            try:
                with ControlClient.connect(paths.control_socket(spec.name), 60) as client:
                    assert client.execute("query-pair", 10)["protection"] == "down"
                    assert client.execute("query-schema", 10)["program"] == "coloctl"
                    with pytest.raises(Exception, match="has no argument x; it takes none"):
                        client.execute("query-pair", 10, x=1)
                process.terminate()
                assert process.wait(60) == 0
            finally:
                process.kill()
    imported = set(written.read_text().split())
    assert "coloctl.control.daemon.serve" in imported
    known = {*sys.stdlib_module_names, "__main__", "coloctl", "sitecustomize"}
    ours = {name.partition(".")[0] for name in imported} - known
    assert {name for name in ours if not name.startswith(("_", "a1_"))} == NEEDED
    parts = {name.split(".")[1] for name in imported if name.startswith("coloctl.")}
    assert not parts & OTHERS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "x.toml", "--control-fd", "three"], "must be the number of a descriptor"),
        (["run", "--control-fd", "3"], "--control-fd follows `run SPEC`"),
        (["run", "x.toml", "--control-fd", "3", "--loud"], "--loud does not fit beside"),
    ],
)
def test_a_command_that_no_watcher_gives_is_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        handed_over._read(arguments)


def test_a_descriptor_that_is_no_socket_is_refused_with_a_sentence() -> None:
    argv = [sys.executable, "-m", "coloctl.cli.main", "run", "x.toml", "--control-fd", "0"]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
