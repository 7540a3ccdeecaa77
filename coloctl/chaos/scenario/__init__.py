"""Describe a run: scenario files as values, their schedule and the moments of their faults."""
