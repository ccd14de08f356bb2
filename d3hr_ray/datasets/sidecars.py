"""Files that say something of images and hold none: Hugging Face's metadata, img2dataset's tables beside its tars."""

import re
from collections.abc import Sequence

METADATA = re.compile(r"(?:.*/)?metadata\.(?:parquet|csv|jsonl)", re.IGNORECASE)


def without_sidecars(names: Sequence[str]) -> list[str]:
    """The names but metadata.parquet and its like, and NAME.parquet beside NAME.tar; in their order."""
    tars = {name[:-4] for name in names if name.lower().endswith(".tar")}
    return [
        name
        for name in names
        if not METADATA.fullmatch(name) and not (name.lower().endswith(".parquet") and name[:-8] in tars)
    ]
