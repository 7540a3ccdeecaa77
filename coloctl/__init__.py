"""coloctl: fault tolerance for QEMU virtual machines, built on COLO."""

__version__ = "0.1.0"
