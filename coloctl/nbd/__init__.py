"""Disks of running QEMUs compared and made equal, by programs that run where the disks are."""
