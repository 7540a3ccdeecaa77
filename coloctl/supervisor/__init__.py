"""One pair, one writer: its state, the acts that change it, and the loop that watches it."""
