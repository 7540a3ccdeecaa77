"""A headless Chromium: the machine's, or Debian's, unpacked into the cache folder and nowhere else.

``python tests/support/browser.py`` has one afterwards, or says why not; tests skip without it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from coloctl.errors import ProvisionError
from coloctl.lab import apt
from coloctl.paths import cache_dir

NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome-stable",
    "google-chrome",
)
#: Debian's Chromium without its windows, and with less of what those need.
PACKAGE, BINARY = "chromium-headless-shell", "usr/lib/chromium/chromium-headless-shell"
LIBRARIES = (
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib/chromium",
    "usr/lib/x86_64-linux-gnu/pulseaudio",
)
DEADLINE_S = 60.0
#: A page's own console; the browser's other complaints are about the machine.
CONSOLE = re.compile(r'CONSOLE[:(][^"]*"(.*)", source')


@dataclass(frozen=True)
class Browser:
    """A Chromium and what it needs in its environment."""

    binary: Path
    environment: dict[str, str]

    def run(self, home: Path, *arguments: str) -> tuple[str, list[str]]:
        """What it printed, and the lines of the page's console."""
        # A folder with a short name: its sockets' addresses have 107 bytes (unix(7)).
        with tempfile.TemporaryDirectory(prefix="ch-", ignore_cleanup_errors=True) as temporary:
            done = subprocess.run(
                [
                    str(self.binary), "--headless", "--no-sandbox", "--disable-gpu",
                    "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
                    "--disable-background-networking", "--disable-component-update",
                    "--disable-crash-reporter", "--disable-breakpad",
                    "--enable-logging=stderr", f"--user-data-dir={home}", *arguments,
                ],
                env={**os.environ, "HOME": str(home), "TMPDIR": temporary, **self.environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=True,
            )  # fmt: skip
        return done.stdout, CONSOLE.findall(done.stderr)


def _home() -> Path:
    return cache_dir() / "chromium"


@cache
def find() -> Browser | None:
    """The machine's Chromium, else the one in the cache folder, else None."""
    for name in NAMES:
        if (found := shutil.which(name)) is not None:
            return Browser(Path(found), {})
    binary = _home() / BINARY
    if not binary.is_file():
        return None
    environment = {
        "LD_LIBRARY_PATH": ":".join(str(_home() / part) for part in LIBRARIES),
        "FONTCONFIG_SYSROOT": str(_home()),
    }
    return Browser(binary, environment)


def provide() -> None:
    """Debian's Chromium of the machine's own suite is in the cache folder; raises `ProvisionError`.

    It runs with the machine's C library, because its processes start one another by their name.
    """
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    debs = apt.fetch(suite, [PACKAGE])
    own = [deb for deb in debs if not deb.name.startswith(("libc6_", "libc-bin_"))]
    apt.unpack(own, _home())
    apt.discard(debs)


def main() -> None:
    if find() is None:
        print("fetching Chromium for the tests of the report", file=sys.stderr)
        try:
            provide()
        except (ProvisionError, OSError) as error:
            print(f"the report is not tested in a browser: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
