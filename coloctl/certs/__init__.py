"""Certificates of machines: a CA per deployment, and one key and certificate per machine."""
