"""What COLO does to a pair of VMs: plans (pure), protection, resync, checkpoints."""
