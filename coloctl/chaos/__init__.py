"""Attacking a pair on purpose: workloads that remember, histories, and checkers that judge them."""
