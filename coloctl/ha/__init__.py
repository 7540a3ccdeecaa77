"""Noticing and surviving: fencing with proof, and failover in the paid-for order."""
