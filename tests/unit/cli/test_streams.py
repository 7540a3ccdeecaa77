"""Standard streams that never raise, and that a supervisor never waits for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from coloctl.cli import streams

pytestmark = pytest.mark.unit


def filled_pipe() -> tuple[int, int, int]:
    """A pipe that takes nothing more, and how many bytes it holds."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    held = 0
    with pytest.raises(BlockingIOError):
        while True:
            held += os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    return reader, writer, held


def read_until(reader: int, end: bytes, begin: bytes = b"") -> bytes:
    said = begin
    while not said.endswith(end):
        said += os.read(reader, 1 << 16)
    return said


def test_chatter_never_waits_and_counts_what_it_could_not_keep() -> None:
    reader, writer, held = filled_pipe()
    chatter = streams.Chatter(writer, most=100)
    began = time.monotonic()
    for number in range(1000):
        chatter.put(b"line %d\n" % number)
    chatter.settle(0.0)
    assert time.monotonic() - began < 60  # it would have stood for ever
    said = read_until(reader, b"line 999\n")[held:].decode().splitlines()
    assert said[-1] == "line 999" and said[-99] == "line 901"
    lost = next(line for line in said if line.endswith("messages were lost here.)"))
    kept = [line for line in said if line.startswith("line ")]
    assert int(lost.strip("(").split()[0]) == 1000 - len(kept)
    os.close(reader)


def test_chatter_says_again_what_it_can_once_somebody_listens() -> None:
    """A reader that has gone costs what was said meanwhile, and nothing else."""
    reader, writer = os.pipe()
    os.close(reader)
    chatter = streams.Chatter(writer)
    chatter.put(b"lost\n")
    chatter.settle(5)
    reader, new = os.pipe()
    os.dup2(new, writer)
    chatter.put(b"heard\n")
    assert read_until(reader, b"heard\n") == b"(1 messages were lost here.)\nheard\n"


def test_a_descriptor_that_somebody_made_non_blocking_is_waited_for() -> None:
    reader, writer, held = filled_pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=streams._write_all, args=(writer, b"all of it\n"))
    thread.start()
    assert len(read_until(reader, b"all of it\n")) == held + 10
    thread.join(5)
    assert not thread.is_alive()


def program(text: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    head = "from coloctl.cli import streams; streams.install()\n"
    argv = [sys.executable, "-c", head + text]
    return subprocess.run(argv, timeout=60, check=False, **{"capture_output": True, **more})  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_alphabet_lacks_is_spelled_as_json_spells_it(encoding: str) -> None:
    text = "✔ ä █ € 😀 \\udcff"
    done = program(
        f'import json; print("{text}"); print(json.dumps(["{text}"], ensure_ascii=False))',
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    plain, document = done.stdout.decode(encoding).splitlines()
    assert done.returncode == 0 and not done.stderr
    assert plain.startswith("✔ ä █" if encoding == "utf-8" else "+ ")
    assert json.loads(document)[0].endswith("€ 😀 \udcff")


def test_a_socket_never_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = f"""
import os, sys
fd = os.open({str(said)!r}, os.O_WRONLY | os.O_CREAT)
print("for nobody", flush=True)
os.write(fd, str(fd).encode())
print(repr(streams.lost()), file=sys.stderr)
sys.stdin.read()
"""
    argv = [sys.executable, "-c", "from coloctl.cli import streams; streams.install()" + code]
    shell = ["sh", "-c", 'exec "$@" <&- >&-', "sh", *argv]
    done = subprocess.run(shell, stderr=subprocess.PIPE, timeout=60, check=True)
    assert int(said.read_text()) > 2
    assert b"Bad file descriptor" in done.stderr
