"""Rules that decide when a stage ends."""
