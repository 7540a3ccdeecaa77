"""The house keeps its own rules, and every rule is shown a small house that breaks it."""

from __future__ import annotations

import pytest
from support import house, house_names

pytestmark = pytest.mark.unit


RETRY = "import tenacity\ntenacity.AsyncRetrying({})\n"

#: Each rule with small trees that break it; paths start below the root package.
BROKEN: dict[house.Rule, list[dict[str, str]]] = {
    house.imports_point_down: [
        {"model/pair.py": "from coloctl.vm import VM", "vm.py": ""},
        {"model/pair.py": "from .. import vm", "vm.py": ""},
        {"clock.py": "def lazily():\n    import coloctl.cli.main", "cli/main.py": ""},
        {"supervisor/loop.py": "from coloctl.control import server", "control/server.py": ""},
        {"__init__.py": "from coloctl.errors import ColoctlError", "errors.py": ""},
        {"attic/junk.py": ""},
    ],
    house.siblings_do_not_know_each_other: [
        {"qmp/wait.py": "from coloctl.machine import option", "machine/option.py": ""},
        {"lab/qemu.py": "import coloctl.host.base as base", "host/base.py": ""},
    ],
    house.no_cycles: [
        {"colo/a.py": "from coloctl.colo import b", "colo/b.py": "from coloctl.colo.a import x"},
        {"clock.py": "import coloctl.errors", "errors.py": "def f():\n    import coloctl.clock"},
    ],
    house.outside_has_keepers: [
        {"vm.py": "from qemu.qmp import QMPClient"},
        {"vm.py": "from qemu import qmp"},
        {"control/client.py": "import click"},
        {"supervisor/loop.py": "def f():\n    from rich.table import Table"},
        {"vm.py": "from pyroute2 import IPRoute"},
    ],
    house.only_lab_and_host_enter_namespaces: [
        {"vm.py": "import os\nos.setns(3)"},
        {"vm.py": "from os import unshare\nunshare(0)"},
        {"vm.py": "argv = ['nsenter', '--net']"},
    ],
    house.model_is_pure: [
        {"model/view.py": "import logging"},
        {"model/view.py": "from os import path"},
        {"model/view.py": "import asyncio.subprocess"},
        {"model/view.py": "text = open('/proc/self/stat').read()"},
    ],
    house.retries_are_few_and_end: [
        {"vm.py": RETRY.format("stop=tenacity.stop_after_delay(1), reraise=True")},
        {"qmp/wait.py": RETRY.format("reraise=True")},
        {"qmp/wait.py": RETRY.format("stop=tenacity.stop_after_delay(1)")},
        {"qmp/wait.py": RETRY.format("stop=tenacity.stop_after_attempt(9), reraise=True")},
    ],
    house.modules_say_what_they_are: [{"vm.py": "import ast"}, {"vm.py": ""}],
    house.files_fit_in_the_head: [
        {"vm.py": "\n" * house.FILE_LINES},
        {"vm.py": "def long():\n" + "    pass\n" * (house.FUNCTION_LINES - 1)},
        {"vm.py": "class A:\n  async def b(self):\n" + "    pass\n" * house.FUNCTION_LINES},
    ],
    house.names_mean_something: [
        {"colo/utils.py": ""},
        {"vm.py": "class VMManager: ..."},
        {"vm.py": "class HostBase: ..."},
        {"vm.py": "class HostImpl: ..."},
        {"vm.py": "PATIENCE_S = 1.0"},
    ],
    house.class_names_are_unique: [
        {"vm.py": "class Step: ...", "asked.py": "class Step: ..."},
        {"vm.py": "class VM:\n  class Step: ...", "asked.py": "class Step: ..."},
    ],
    house_names.signals_go_by_pidfd: [
        {"vm.py": "import os\nos.kill(1, 9)"},
        {"vm.py": "import os\ndef end():\n    os.killpg(1, 9)"},
        {"vm.py": "from os import kill\nkill(1, 9)"},
        {"host/launch.py": "def discard(): ..."},
        {"host/launch.py": "import os\ndef discard(): ...\ndef x():\n    os.kill(1, 9)"},
    ],
    house_names.nothing_is_only_for_tests: [
        {"vm.py": "LIMIT_S = 1.0"},
        {"vm.py": "_LIMIT_S: float = 1.0"},
        {"vm.py": "def again(n):\n    again(n - 1)"},
        {"vm.py": "@functools.cache\ndef found(): ..."},
        {"vm.py": "def end(): ...", "asked.py": "import coloctl.vm\ndef end(): ...\nend()"},
        {"vm.py": "class VM:\n    def end(self): ...\nVM()"},
        {"vm.py": "class VM:\n    def end(self):\n        self.end()\nVM()"},
        {"vm.py": "class Host(Protocol):\n    @property\n    def end(self): ...\nx: Host\nx"},
    ],
    house_names.views_are_read_by_attribute: [
        {"chaos/run/runner.py": "def over(view):\n    return view['protection']"},
        {"bench/soak.py": "count = acts.view()['checkpoints']['count']"},
        {"api/faults.py": "role = self.view['nodes']"},
    ],
    house_names.raises_are_named: [
        {"vm.py": "def ask():\n    raise ValueError('no')"},
        {"vm.py": "async def ask():\n    'Ask.'\n    if 1:\n        raise errors.Late('no')"},
        {"vm.py": "class VM:\n    'A QEMU.'\n    def __init__(self):\n        raise Late()"},
        {"vm.py": "class VM:\n    'See `Late`.'\n    def ask(self):\n        raise Late()"},
        {"vm.py": "def ask():\n    try:\n        go()\n    except Late:\n        raise Late('no')"},
        {"vm.py": "def ask():\n    with suppress(KeyError):\n        raise Late('no')"},
        {"vm.py": "def ask():\n    'See `LateReply`.'\n    raise Late('no')"},
    ],
}

#: What a rule must let pass although it looks like what it forbids.
SOUND: dict[house.Rule, dict[str, str]] = {
    house.imports_point_down: {
        "vm.py": "from coloctl.model.pair import PairSpec\nfrom coloctl.errors import ColoctlError",
        "model/pair.py": "from .qapi import RunState",
        "model/qapi.py": "",
        "errors.py": "",
    },
    house.siblings_do_not_know_each_other: {
        "qmp/wait.py": "from coloctl.qmp import session",
        "qmp/session.py": "import qemu.machine",
    },
    house.no_cycles: {"colo/__init__.py": "", "colo/a.py": "from coloctl import colo"},
    house.outside_has_keepers: {"qmp/session.py": "from qemu.qmp import QMPClient"},
    house.only_lab_and_host_enter_namespaces: {"host/netns.py": "import os\nos.setns(3)"},
    house.model_is_pure: {"model/view.py": "import dataclasses", "vm.py": "import os"},
    house.retries_are_few_and_end: {
        "qmp/wait.py": RETRY.format("stop=tenacity.stop_after_delay(1), reraise=True")
    },
    house.modules_say_what_they_are: {"vm.py": '"""A running QEMU."""'},
    house.files_fit_in_the_head: {
        "vm.py": "def fits():\n" + "    pass\n" * (house.FUNCTION_LINES - 2)
    },
    house.names_mean_something: {
        "vm.py": "class Basement: ...\nEND_WAIT_S = 1.0",
        "lab/mutils.py": "",
    },
    house.class_names_are_unique: {"vm.py": "class Step: ...", "asked.py": "class Stride: ..."},
    house_names.signals_go_by_pidfd: {
        "host/launch.py": "import os\ndef discard():\n    os.killpg(1, 9)",
        "vm.py": "import signal\nsignal.pidfd_send_signal(3, 9)",
    },
    house_names.nothing_is_only_for_tests: {
        "asked.py": "from coloctl import vm\nfrom coloctl.vm import end\nvm.VM().ask()",
        "vm.py": (
            "LIMIT_S = 1.0\n"
            "def end(): ...\n"
            "class VM(Asking):\n    def ask(self):\n        return LIMIT_S\n"
            "class Asking:\n    known: int\n    def __init__(self): ...\n"
        ),
        "cli/run.py": "@click.command()\ndef run(): ...",
        "control/http.py": (
            "class Handler(http.server.BaseHTTPRequestHandler):\n    def do_GET(self): ...\n"
            "class Kind(StrEnum):\n    SEEN = 'seen'\nHandler, Kind"
        ),
        "api/pair.py": "def pair(): ...",
    },
    house_names.views_are_read_by_attribute: {
        "chaos/run/runner.py": "node = view.nodes['a']\ncount = rows[0]",
        "model/view.py": "name = view['name']",
    },
    house_names.raises_are_named: {
        "vm.py": (
            "def ask():\n    'Ask; raises `Late`.'\n    raise Late('no')\n"
            "def _ask():\n    raise Late('no')\n"
            "class VM:\n    'Raises `Late`.'\n    def __init__(self):\n        raise Late()\n"
            "    def ask(self):\n        raise NotImplementedError()\n"
            "class _Own:\n    def ask(self):\n        raise Late()\n"
        ),
        "asked.py": (
            "def ask():\n    try:\n        raise errors.Late()\n    except (Late, OSError):\n"
            "        raise\n    with suppress(Late):\n        raise Late()\n"
            "    def inner():\n        raise Late()\n    raise late('no')\n"
        ),
        "cli/verbs/ask.py": "def ask():\n    'Ask.'\n    raise UsageError('no')",
    },
}


def small_house(files: dict[str, str]) -> dict[str, house.Module]:
    return house.parse({f"{house.ROOT}/{path}": text for path, text in files.items()})


def name_of(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("rule", BROKEN, ids=name_of)
def test_the_house_keeps_the_rule(rule: house.Rule, product: house.Tree) -> None:
    assert product, "no source was found"
    assert not list(rule(product)), rule.__doc__


@pytest.mark.parametrize(
    ("rule", "files"),
    [(rule, files) for rule, trees in BROKEN.items() for files in trees],
    ids=name_of,
)
def test_the_rule_catches_who_breaks_it(rule: house.Rule, files: dict[str, str]) -> None:
    assert list(rule(small_house(files)))


@pytest.mark.parametrize(("rule", "files"), SOUND.items(), ids=name_of)
def test_the_rule_lets_the_sound_pass(rule: house.Rule, files: dict[str, str]) -> None:
    assert not list(rule(small_house(files)))


def test_every_rule_has_both_samples() -> None:
    rules = {
        function
        for name, function in (vars(house) | vars(house_names)).items()
        if name[0] != "_"
        and getattr(function, "__annotations__", {}).get("return") == "Iterator[str]"
        and set(function.__annotations__) == {"tree", "return"}
    }
    assert rules == set(BROKEN) == set(SOUND)
