"""The control socket of a supervisor, in QMP's wire format: ``qmp-shell SOCKET`` works on it."""
