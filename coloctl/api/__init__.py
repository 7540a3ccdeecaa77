"""Pairs from Python: what the command line can do, and chaos, as verbs that are awaited.

``async with coloctl.pair("web.toml") as pair`` gives a `coloctl.api.pair.Pair`.
"""
