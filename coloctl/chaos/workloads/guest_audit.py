"""Ask the guest for its boot id, and for the records that its disk and its memory hold.

Started as a process by `chaos.evidence.audit`; reads the append-only file with
`chaos.evidence.appendonly`. A mark is set at the moment at which what redis remembers is read. The
append-only file up to that mark is what redis wrote by then: both must be the same, even if clients
append meanwhile.
"""

from __future__ import annotations

import argparse
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from coloctl.chaos.evidence.appendonly import RECORDS, NotRedisFile, records
from coloctl.chaos.workloads.blocks import Blocks
from coloctl.chaos.workloads.client import ConnectionLost
from coloctl.chaos.workloads.store import store

MARK = b"audit:mark"
#: Sets the mark KEYS[1] and answers, at that very moment, every list of records after its name.
LOOK = """
redis.call('SET', KEYS[1], ARGV[1])
local held = {}
for _, name in ipairs(redis.call('KEYS', 'records:*')) do
    held[#held + 1] = {name, redis.call('LRANGE', name, 0, -1)}
end
return held
"""


def memory(host: str, mark: bytes) -> dict[int, list[int]]:
    """Return what redis remembers at the moment at which the mark is set."""
    with store(host) as server:
        lists = server.ask("EVAL", LOOK, 1, MARK, mark)
    return {int(name.removeprefix(RECORDS)): [int(n) for n in held] for name, held in lists}


def audit(host: str) -> dict[str, Any]:
    """Return the guest's answers, as `Audit` has them.

    Raises `ConnectionLost` or `NotRedisFile`.
    """
    at_s, mark = time.monotonic(), secrets.token_hex(8).encode()
    remembered = memory(host, mark)
    with Blocks(host) as disk:
        boot_id = disk.boot_id()
        written = records(disk.append_only_file(), (MARK, mark))
    return {"at_s": at_s, "boot_id": boot_id, "disk": written, "memory": remembered}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the audit as JSON.

    Raises `SystemExit`: exit code 1 and a sentence, when the guest does not answer.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    try:
        print(json.dumps(audit(parser.parse_args(arguments).host)))
    except (ConnectionLost, NotRedisFile) as error:
        raise SystemExit(f"no audit: {error}") from error


if __name__ == "__main__":
    main()
