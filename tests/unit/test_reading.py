"""Goal: no value in a pair file or a scenario ends in a traceback, nor in a message of a page.

Method: hostile values are put in the place of every value of a complete file, one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pairfiles import pair_text

from coloctl import pairfile
from coloctl.chaos.scenario import file as scenario_file
from coloctl.errors import ColoctlError, SpecError
from coloctl.reading import read_toml

pytestmark = pytest.mark.unit

SCENARIOS = Path(__file__).parents[2] / "scenarios"

#: A sentence and a quotation of what is wrong.
MESSAGE_MAX = 600

HOSTILE = {
    "thousands of digits": "9" * 5000,
    "as many as are read": "9" * 4000,
    "hexadecimal": "0x" + "f" * 4000,
    "beyond a double": "9" * 400,
    "beyond 64 bits": "-" + "9" * 30,
    "infinity": "1e999",
    "no number": "nan",
    "deep lists": "[" * 20_000 + "]" * 20_000,
    "lists that Python reads": "[" * 200 + "]" * 200,
    "deep tables": "{a=" * 20_000 + "1" + "}" * 20_000,
    "a table": "{a = 1}",
    "a time": "07:32:00",
    "a truth": "true",
    "NUL": '"\\u0000"',
}

PAIR = pair_text(guest='memory = "64MiB"\ncpus = 1\nextra_args = ["-s"]', nic=True)
PAIR += """
[replication]
base_port = 25000
[checkpoint]
delay_ms = 200
pause_share = 0.05
[fencing]
method = "command"
command = ["x"]
timeout_s = 60
[fencing.options]
port = 1
"""


def with_hostile(text: str, value: str) -> Iterator[str]:
    """The file with ``value`` in the place of each of its values, and under a key of its own."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if match := re.match(r"([\w.-]+) = ", line):
            yield "\n".join([*lines[:number], f"{match[1]} = {value}", *lines[number + 1 :]])
    yield f"{text}\nunknown = {value}\n"


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_a_pair_file_with_a_hostile_value_is_wrong_in_a_sentence(
    value: str, tmp_path: Path
) -> None:
    file = tmp_path / "w.toml"
    for text in with_hostile(PAIR, value):
        file.write_text(text)
        try:
            pairfile.load(file)
        except SpecError as error:
            assert len(str(error)) < MESSAGE_MAX


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_a_scenario_with_a_hostile_value_is_wrong_in_a_sentence(value: str, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    for text in with_hostile(sorted(SCENARIOS.glob("*.toml"))[0].read_text(), value):
        file.write_text(text)
        errors: list[ColoctlError] = [*scenario_file.examine(file)[1]]
        assert all(len(str(error)) < MESSAGE_MAX for error in errors)


def test_a_key_of_many_parts_is_too_deep() -> None:
    with pytest.raises(ValueError, match="too deeply"):
        read_toml("[" + "a." * 5_000 + "a]\n")
    assert read_toml("a = [[1]]\n") == {"a": [[1]]}
