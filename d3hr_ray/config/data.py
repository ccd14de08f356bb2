"""Which images are distilled, by which model."""

from dataclasses import MISSING, dataclass
from functools import partial
from typing import Literal

from d3hr_ray.config.fields import DATA, MODEL, check, one_of, setting

Format = Literal["auto", "imagefolder", "webdataset", "parquet", "idx", "digits"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_data = partial(setting, group=DATA, upstream=True)


@dataclass(frozen=True)
class DataConfig:
    """Which images: `uri` is a folder, file or URI that pyarrow.fs resolves, or an embedded set's name.

    `class_depth` is the level of an image folder's class folders: 1 for FOLDER/<class>/..., 2 for groups of them.
    `classes` chooses some; `class_ids`, written NAME=ID, says what class of the model a class is, and leaves none out.
    `image_column` and `label_column` name columns of Parquet that are not found by their names.
    """

    uri: str = _data(
        MISSING,
        "Images: a folder, a .tar, a .parquet, or an s3:// or gs:// URI. Needed for all presets but the digits and "
        "fashion-mnist.",
        name="data",
        metavar="URI",
        shown="the embedded digits",
    )
    format: Format = _data("auto", "Layout of --data: imagefolder is FOLDER/<class>/<image>.")
    classes: tuple[str, ...] = _data(
        (),
        "Classes in order, and no others: names, wnids, NAME=ID (the model's class id), a file of them, or imagenette, "
        "imagewoof, imagenet100.",
        metavar="NAME ...",
        shown="all, sorted",
    )
    limit_per_class: int | None = _data(None, "Use only the first so many images of each class.", shown="all")
    max_rejected: float = _data(0.01, "Share of unreadable images above which the run fails.")
    shard_size: int = 512
    class_depth: int | None = _data(
        None,
        "Of an image folder: the level whose folders are the classes, 1 for FOLDER/<class>/..., 2 for "
        "FOLDER/<group>/<class>/...",
        shown="1, where that is clear",
        late=True,
    )
    class_ids: tuple[str, ...] = _data(
        (),
        "The model's class id of classes whose name it does not know or that fits two; the other classes stay.",
        metavar="NAME=ID ...",
        late=True,
    )
    image_column: str | None = _data(
        None,
        "Of Parquet: the column of images.",
        metavar="NAME",
        shown="found by its name, such as image",
        late=True,
    )
    label_column: str | None = _data(
        None,
        "Of Parquet: the column of labels.",
        metavar="NAME",
        shown="found by its name, such as label",
        late=True,
    )

    def __post_init__(self) -> None:
        one_of("--format", self.format, Format)
        check(len(set(self.classes)) == len(self.classes), "--classes names a class twice; name each once")
        for entry in self.class_ids:
            name, _, number = entry.rpartition("=")
            check(bool(name) and number.isdecimal(), f"--class-ids {entry}: write NAME=ID, ID a number")
        named = {entry.rpartition("=")[0] for entry in self.class_ids}
        check(len(named) == len(self.class_ids), "--class-ids names a class twice; name each once")
        limit = self.limit_per_class
        check(
            limit is None or limit >= 2,
            f"--limit-per-class {limit} leaves no variance to fit; give 2 or more",
        )
        check(0 <= self.max_rejected <= 1, f"--max-rejected {self.max_rejected} is a share; give 0 to 1")
        depth = self.class_depth
        check(depth is None or depth >= 1, f"--class-depth {depth} must be at least 1, the level right below --data")
        check(self.shard_size >= 1, f"shard size {self.shard_size} must be at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """`name` is an embedded model such as digits, a diffusers DiTPipeline folder or a hub id."""

    name: str = setting(
        MISSING,
        "diffusers DiTPipeline: a folder, a hub id, or an embedded model (digits, digits-affine, fashion-mnist).",
        MODEL,
        name="model",
        metavar="FOLDER|ID",
        shown="the preset's",
        upstream=True,
    )
    dtype: Dtype = setting(
        "auto", "Of the denoiser. auto: bfloat16 on GPUs (official: float16), float32 on CPUs.", MODEL
    )

    def __post_init__(self) -> None:
        one_of("--dtype", self.dtype, Dtype)
