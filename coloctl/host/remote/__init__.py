"""The host at the other end of a connection: dialled, supplied with the agent, asked, watched."""
