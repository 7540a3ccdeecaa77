"""Checks before it matters: a binary's abilities, a pair's needs, a trial of COLO."""
