"""Draw what the verbs print: tables, plain text, JSON, progress; nothing here asks a supervisor."""
