"""Command lines: flags, presets, and what they make together."""
