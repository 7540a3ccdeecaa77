"""Observe a run and keep what its checks need: events, frames, disks, remains."""
