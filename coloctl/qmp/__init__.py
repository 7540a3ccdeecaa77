"""Send QMP commands to QEMUs: sessions, the two monitors of a QEMU, command values, their schema.

Invariant: the only package that imports ``qemu.qmp``.
"""
