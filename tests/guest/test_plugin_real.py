"""The pytest plugin as its users have it: their file, their run of pytest, a real pair."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coloctl import paths
from coloctl.chaos.run.testbed import Testbed, pair_file
from coloctl.lab.guest import GuestImage
from coloctl.lab.network import Lab
from coloctl.lab.qemu import Build

pytestmark = pytest.mark.guest

PATIENCE_S = 240

TEST = """
async def test_a_write_survives_its_host(colo_lab, colo_pair):
    assert (await colo_pair.status()).protection == "colo"
    with colo_lab.connect(6379) as redis:
        redis.sendall(b"SET answer 42\\r\\n")
        assert redis.recv(64) == b"+OK\\r\\n"
        await colo_pair.kill("primary")
        view = await colo_pair.wait_for("unprotected")
        assert view.primary().name == "b"
        redis.sendall(b"GET answer\\r\\n")
        assert redis.recv(64) == b"$2\\r\\n42\\r\\n"
    assert False, "a test that fails leaves nothing behind either"
"""

INTERRUPTED = """
import os, signal, threading, pytest

@pytest.fixture
def impatient(colo_lab):
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()

def test_it_is_interrupted_while_the_guest_boots(impatient, colo_pair):
    print("is never reached")
"""


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_mine.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        env={**os.environ, "COLOCTL_QEMU": "11.1"},
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _goods(guest_image: GuestImage) -> None:
    """Nothing is fetched in the middle of a test."""


def test_a_file_of_a_user_protects_kills_and_reads_back(tmp_path: Path) -> None:
    done = run(tmp_path, TEST)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert "a test that fails leaves nothing behind either" in done.stdout


def test_ctrl_c_ends_the_pair_and_the_lab(tmp_path: Path) -> None:
    done = run(tmp_path, INTERRUPTED)
    assert done.returncode in (pytest.ExitCode.INTERRUPTED, -signal.SIGINT), done
    assert "KeyboardInterrupt" in done.stdout
    assert "never reached" not in done.stdout


def test_the_main_example_of_the_document_runs(
    tmp_path: Path, guest_image: GuestImage, qemu_builds: Callable[[str], Build]
) -> None:
    text = (Path(__file__).parents[2] / "docs/python-api.md").read_text()
    example = text.split("<!-- example: main -->\n```python\n", 1)[1].split("```", 1)[0]
    with Lab.up(f"t{os.getpid()}") as lab:
        setting = Testbed(qemu_builds("11.1").binary, "tcg", guest_image, "web")
        pair_file(setting, lab, tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", example],
            cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Node b runs the guest: ")
    assert not paths.pair_dir("web").exists()
