"""Carry the operations of a host over one byte stream: frames, requests, pushes and streams."""
