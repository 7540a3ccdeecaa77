"""Pure facts and decisions: no asyncio, no I/O, no logging."""
