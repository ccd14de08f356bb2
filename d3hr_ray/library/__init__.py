"""The method over torch tensors, without Ray or a run folder: what `import d3hr_ray` gives (docs/library.md)."""
