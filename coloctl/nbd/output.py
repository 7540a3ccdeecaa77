"""Print what a program beside a disk found, a line of JSON per message.

Called by `nbd.digest` and `nbd.compare`; `colo.programs` reads the lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from coloctl.nbd import wire


def print_all(messages: Iterable[dict[str, Any]]) -> int:
    """Print the messages, a failure as the last one; return the exit code.

    It is 1 after a failure, or when the reader has gone.
    """
    try:
        for message in messages:
            print(json.dumps(message), flush=True)
    except wire.NBDFailed as error:
        print(json.dumps({"failed": error.message}), flush=True)
        return 1
    except BrokenPipeError:
        return 1
    return 0
