"""QMP commands that only tests send."""

from __future__ import annotations

from coloctl.qmp.command import Command


def query_migrate_parameters() -> Command:
    return Command("query-migrate-parameters")


def query_block_jobs() -> Command:
    return Command("query-block-jobs")


def qom_get(path: str, property_: str) -> Command:
    return Command("qom-get", {"path": path, "property": property_})
