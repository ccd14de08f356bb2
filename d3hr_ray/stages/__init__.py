"""The stages on Ray: files in, files out, resumable. Their cores are plain functions that tests call without Ray."""
