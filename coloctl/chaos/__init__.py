"""Inject faults into a pair under load, and check from the evidence what its clients saw."""
