"""Talking QMP: sessions, the two roads of a monitor, command values and the schema they obey.

The only package that imports ``qemu.qmp``.
"""
