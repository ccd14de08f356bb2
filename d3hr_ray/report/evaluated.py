"""The report of an evaluation."""

from d3hr_ray.store import Store


def report(store: Store) -> str:
    """Write the page and say where."""
    return ""
