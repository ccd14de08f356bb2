"""The flags that say what lies at a --data, of every job those that it has."""

from typing import Any

from d3hr_ray.config import DataConfig, settings_of
from d3hr_ray.datasets.classes import read_classes
from d3hr_ray.datasets.splits import to_test_on

LAYOUT = ("format", "class_depth", "image_column", "label_column", "class_ids")


def data_of(flags: Any, uri: str, **others: Any) -> DataConfig:
    """The images at a URI, as a job's flags describe them. Raises ValueError for what cannot be."""
    described = {
        name: getattr(flags, name) for name in settings_of(DataConfig) if name != "data" and hasattr(flags, name)
    }
    if "classes" in described:
        described["classes"] = read_classes(described["classes"])
    return DataConfig(uri, **described | others)


def test_data(flags: Any) -> DataConfig | None:
    """The real images that --data names, to test on: of a set that it names as a whole, the test split."""
    return to_test_on(data_of(flags, flags.data)) if flags.data else None
