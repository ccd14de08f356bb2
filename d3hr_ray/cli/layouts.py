"""The flags that say how the images of a --data are laid out: of every job, those that it has."""

from typing import Any

LAYOUT = ("class_depth", "image_column", "label_column", "class_ids")


def layout(flags: Any) -> dict[str, Any]:
    """A job's flags => the fields of a DataConfig that they say."""
    return {name: getattr(flags, name) for name in LAYOUT if hasattr(flags, name)}
