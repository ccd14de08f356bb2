"""Which columns of a Parquet file hold the images and the labels, and the labels as class names."""

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from d3hr_ray.datasets.imagenet import distinct

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label", "target", "class_name", "wnid")
NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Columns:
    """The columns that the user names; None is found by name."""

    image: str | None = None
    label: str | None = None


BY_NAME = Columns()


def image_column(schema: pa.Schema, columns: Columns, where: str) -> str:
    """The column of images: bytes, Hugging Face's struct of bytes or a path, or paths as text, which come last.

    Raises ValueError without one.
    """
    names = [name for name in ((columns.image,) if columns.image else IMAGE_COLUMNS) if name in schema.names]
    for holds in (_holds_images, is_text):
        for name in names:
            if holds(schema.field(name).type):
                return name
    asked = f"no image column {columns.image!r}" if columns.image else "no image column"
    raise ValueError(
        f"--data {where}: {asked}; it must be bytes, Hugging Face's struct with bytes, or paths. The file has "
        f"{_listed(schema)}: name it by --image-column, or call it one of {', '.join(IMAGE_COLUMNS)}"
    )


def names_files(kind: pa.DataType) -> bool:
    """Whether a column of images holds paths alone: a writer that sees no bytes may give them the type of nothing."""
    return is_text(kind) or _is_struct_of_paths(kind)


def _is_struct_of_paths(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return False
    without = kind.get_field_index("bytes") < 0 or pa.types.is_null(kind.field("bytes").type)
    return without and is_text(kind.field("path").type)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds words, which a path is one of."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _holds_images(kind: pa.DataType) -> bool:
    if _is_struct_of_paths(kind):
        return True
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def read_labels(parquet: pq.ParquetFile, columns: Columns, where: str) -> pa.Array:
    """The class name of every row, from the label column or a folder label=NAME. Raises ValueError without one."""
    schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    wanted = (columns.label,) if columns.label else LABEL_COLUMNS
    column = next((name for name in wanted if name in schema.names), None)
    if column is None:
        return pa.array([_of_folder(wanted, schema, columns, where)] * rows, pa.string())
    labels = parquet.read(columns=[column])[column]
    if pa.types.is_dictionary(labels.type):  # a category of pandas
        labels = labels.cast(labels.type.value_type)
    labels = labels.combine_chunks()
    if labels.null_count:
        row = labels.is_null().index(True).as_py()
        raise ValueError(f"--data {where}: row {row} has no {column!r}; every image needs a label")
    kind = labels.type
    if not (pa.types.is_integer(kind) or is_text(kind)):
        raise ValueError(
            f"--data {where}: label column {column!r} is {kind}; it must hold integers or strings. The file has "
            f"{_listed(schema)}: name another by --label-column"
        )
    if rows != len(labels):
        raise ValueError(f"--data {where}: claims {rows} rows and has {len(labels)}; copy it again")
    names = _class_names(schema, column, where)
    if names is not None and pa.types.is_integer(kind):
        outside = pc.or_(pc.less(labels, 0), pc.greater_equal(labels, len(names)))
        if pc.any(outside).as_py():
            raise ValueError(f"--data {where}: a {column!r} lies outside its {len(names)} class names")
        labels = pa.array(names).take(labels)
    return labels.cast(pa.string())


def _of_folder(wanted: tuple[str, ...], schema: pa.Schema, columns: Columns, where: str) -> str:
    """The label that a folder of the path says, as Hive has it: label=NAME."""
    found = [pair for pair in re.findall(r"([^/=]+)=([^/]*)/", where) if pair[0] in wanted]
    if not found:
        asked = f"no label column {columns.label!r}" if columns.label else "no label column"
        raise ValueError(
            f"--data {where}: {asked} and no folder label=NAME. The file has {_listed(schema)}: name it by "
            f"--label-column, or call it one of {', '.join(LABEL_COLUMNS)}"
        )
    name = unquote(found[-1][1])
    if name in ("", NULL):
        raise ValueError(f"--data {where}: lies in a folder without {found[-1][0]!r}; every image needs a label")
    return name


def _listed(schema: pa.Schema) -> str:
    return ", ".join(schema.names[:20]) + (", ..." if len(schema.names) > 20 else "")


def _class_names(schema: pa.Schema, column: str, where: str) -> list[str] | None:
    """Hugging Face's ClassLabel names, if the file's metadata holds them; those that come twice are kept apart."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    try:
        features: dict[str, Any] = json.loads(metadata)["info"]["features"]
        names = features[column].get("names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--data {where}: its huggingface metadata cannot be read ({error!r}); drop or mend it"
        ) from error
    return distinct(names) if names else None
