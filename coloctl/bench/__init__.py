"""Measure pairs: failovers, circles, soaks, overhead, paces and the cost of supervisors."""
