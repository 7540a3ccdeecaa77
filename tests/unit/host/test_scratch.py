"""Memory that another process writes into, digested by the page."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from coloctl.errors import PreconditionFailed
from coloctl.host import open_host
from coloctl.host.scratch import DIGEST, MemoryFile

pytestmark = pytest.mark.unit

PAGE, KEY = 4096, b"k" * 16


async def test_each_page_has_its_digest() -> None:
    pages = [bytes(PAGE), os.urandom(PAGE), bytes(PAGE - 1) + b"x", bytes(PAGE)]

    async def check() -> bytes:
        host = open_host("local")
        scratch = await host.scratch()
        try:
            path = Path(f"/proc/self/fd/{scratch.fileno()}")  # as QEMU opens it, from the beginning
            path.write_bytes(b"".join(pages))
            return await scratch.digests(len(pages) * PAGE, PAGE, KEY)
        finally:
            scratch.close()
            await host.aclose()

    found = await check()
    each = [hashlib.blake2b(page, digest_size=DIGEST, key=KEY).digest() for page in pages]
    assert found == b"".join(each)


async def test_what_was_written_in_part_is_no_answer() -> None:
    scratch = MemoryFile()
    try:
        os.pwrite(scratch.fileno(), b"x" * 100, 0)
        with pytest.raises(PreconditionFailed, match="100 bytes of its memory, not 4096"):
            await scratch.digests(PAGE, PAGE, KEY)
    finally:
        scratch.close()


def test_what_another_process_still_holds_is_empty_afterwards() -> None:
    scratch = MemoryFile()
    held = os.dup(scratch.fileno())
    try:
        os.pwrite(scratch.fileno(), b"secret", 0)
        scratch.close()
        assert os.fstat(held).st_size == 0
    finally:
        os.close(held)
