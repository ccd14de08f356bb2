"""The project's own measurements: records under results/, from which docs/results.md is rendered."""
