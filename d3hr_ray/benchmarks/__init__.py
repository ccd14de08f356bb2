"""Benchmarks: one file each, `run(quick) -> Result`. Both sides of a ratio are measured in turns in one run."""
