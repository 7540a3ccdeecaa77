"""Serve one machine to a supervisor on another one: the program at the far end of a connection.

Reached through a connection and never by import, but for the verb `agent`; calls `host.local` for
each operation. `host.agent.main` is the program, `host.agent.work` its table of operations.
"""
