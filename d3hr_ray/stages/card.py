"""A set's card, README.md: what is in it, how to train on it and to test, what it reaches, whose the images are."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from d3hr_ray.datasets.source import data_name
from d3hr_ray.sets import about_of

PREVIEW = "preview.png"  # in a set's folder
HUB_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")  # an identifier of the Hugging Face hub, such as cc-by-4.0
MOST_SEEN = 224  # pixels that students see, as in all published protocols
STUDENT = {"arch": "convnet-d3", "protocol": "hard"}  # of the card's code, where nothing was measured
TEXT = """---
pretty_name: {name}
{license}task_categories:
- image-classification
tags:
- dataset-distillation
- {method}
---
# {name}

{images} images of {side} x {side} pixels, {ipc} per class of {classes} classes, distilled by d3hr_ray (method
`{method}`).
{preview}
| | |
|---|---|
| source data | {source} |
| licence | {terms} |
| generator | `{model}` |
| fitted at timestep | {timestep} |
| inversion / sampling guidance | {inversion} / {guidance} |
| search | {search} |
| seed | {seed} |
| set hash | `{set_hash}` |

## Accuracy

{measured}

## Train on it

The images are those of `train/`. Test images are real ones of the same classes, in a folder of your own, TEST_IMAGES:
a subfolder per class, with the names of the subfolders of `train/`; they are resized and cropped to {seen} pixels.

```python
import d3hr_ray as d3

train = d3.load_set(".", side={seen})  # this folder
test = d3.load_set("TEST_IMAGES", side={seen}, as_test=True)
print(train.images.shape, train.labels.shape, train.classes)  # N x C x {seen} x {seen} in [-1, 1], N, names
top1 = d3.train_student(train, test, {how})
print(f"top-1 on {{len(test)}} real images: {{top1:.1%}}")
```

The same with means, intervals and random real images beside it: `python jobs/evaluate.py --distilled . --data
TEST_IMAGES --out results`.

Other loaders: `torchvision.datasets.ImageFolder("train")`, `datasets.load_dataset("imagefolder", data_dir=".")`. Both
number the classes by sorted folder name. `metadata.parquet` holds the run's own labels, which differ from that if wnids
were given in another order. `manifest.json` is the whole recipe, with a hash of every image.
"""


@dataclass(frozen=True)
class Origin:
    """Whose the real images are, as --card-license and --card-source say; it decides no byte of a set's images."""

    license: str | None = None
    source: str | None = None

    @property
    def plain(self) -> dict[str, str]:
        """As JSON: what is known."""
        return {key: value for key, value in vars(self).items() if value}


UNKNOWN = Origin()


@dataclass(frozen=True)
class Looks:
    """What a card must know beside the manifest: numbers of images, classes, pixels, and whether PREVIEW is there."""

    images: int
    classes: int
    side: int
    preview: bool = False


def card_text(manifest: Mapping[str, Any], looks: Looks, measured: Sequence[str] = (), how: str = "") -> str:
    """The card of a set. `measured` are lines on its accuracy, `how` the arguments of the training that was measured.

    Nothing on it says where anything lies on this machine.
    """
    config, about, origin = manifest["config"], about_of(manifest), Origin(**manifest.get("origin", {}))
    return TEXT.format(
        name=manifest["variant"],
        license=_front_matter(origin.license),
        method=about["method"],
        images=looks.images,
        side=looks.side,
        seen=min(looks.side, MOST_SEEN),
        ipc=about["ipc"],
        classes=looks.classes,
        preview=f"\n![a few images of each class]({PREVIEW})\n" if looks.preview else "",
        source=origin.source or data_name(config["data"]["uri"]) or "none: the generator's classes",
        terms=origin.license or "not stated: that of the source data holds",
        model=_portable(config["model"]["name"]),
        timestep="none" if about["timestep"] is None else about["timestep"],
        inversion=config["inversion"]["guidance"],
        guidance=config["synthesis"]["guidance"],
        search=about["search"] or "none",
        seed=about["seed"],
        set_hash=manifest["set_hash"],
        measured="\n".join(measured) or "Not measured yet.",
        how=how or arguments(**STUDENT),
    )


def arguments(**given: object) -> str:
    """Keyword arguments as Python."""
    return ", ".join(f"{key}={json.dumps(value) if isinstance(value, str) else value}" for key, value in given.items())


def _front_matter(license: str | None) -> str:
    if not license:
        return ""
    if HUB_LICENSE.fullmatch(license):
        return f"license: {license}\n"
    return f"license: other\nlicense_name: {json.dumps(license)}\n"


def _portable(model: str) -> str:
    """A hub id or an embedded model as it is, a folder by its own name."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith(("/", ".", "~")) or model.count("/") != 1 else model
