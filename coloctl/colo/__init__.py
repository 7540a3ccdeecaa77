"""Plans (pure), protection, resync, checkpoints and disk records of a pair of VMs in COLO."""
