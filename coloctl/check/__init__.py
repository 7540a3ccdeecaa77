"""Finding out before it matters: what a binary can do, what a pair needs, what breaks."""
