"""The commands that people type: the only importer of click and rich."""
