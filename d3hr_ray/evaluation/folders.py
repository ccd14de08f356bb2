"""Where distilled sets lie: ours and anyone's, found by their folders alone, without a network or an image."""

from d3hr_ray.config import DataConfig, data_config
from d3hr_ray.datasets.source import IMAGE_SUFFIXES
from d3hr_ray.runs import base_of
from d3hr_ray.store import Store, absolute


def find_sets(paths: tuple[str, ...]) -> list[Store]:
    """Paths of sets, of run folders or of their distilled/ => a store per set. Raises ValueError if none."""
    return [store for path in paths for store in _sets_at(path)]


def _sets_at(path: str) -> list[Store]:
    store = Store(absolute(path))
    if store.name == "train" and _has_train(store.at("..")):
        return [store.at("..")]  # named by the folder that a set's train/ lies in
    if _has_train(store):
        return [store]
    is_run = store.exists("run.json")
    inner = store.at("distilled") if is_run else store
    if names := [n for n in inner.folders() if _has_train(inner.at(n))]:
        return [inner.at(n) for n in names]
    if not is_run and class_folders(store):
        return [store]
    raise ValueError(f"--distilled {path}: no set in it (a folder with train/<class>/<image> or <class>/<image>)")


def images_of(store: Store) -> Store:
    """The folder that holds a set's class folders: its train/, or, where it has none, itself."""
    return store.at("train") if _has_train(store) else store


def _has_train(store: Store) -> bool:
    """Whether train/ holds folders: one that holds images is a class of that name."""
    return "train" in store.folders() and bool(store.at("train").folders())


def class_folders(store: Store) -> list[str]:
    """Folders with an image, at any depth, in sorted order."""
    return [name for name in store.folders() if not name.startswith(".") and _image_in(store.list(name, True))]


def first_image(store: Store) -> str:
    """The first image's name within a set's class folders. Raises ValueError if there is none."""
    if name := next((f"{n}/{found}" for n in store.folders() if (found := _image_in(store.list(n, True)))), None):
        return name
    raise ValueError(f"--distilled {store.uri}: no image in its class folders")


def _image_in(names: list[str]) -> str | None:
    return next((name for name in names if name.lower().endswith(IMAGE_SUFFIXES)), None)


def run_of(store: Store) -> Store | None:
    """The run folder that a set lies in."""
    run = base_of(store.at("../.."))
    return run if run.exists("run.json") else None


def source_of(store: Store) -> DataConfig | None:
    """The real images that a set of ours was distilled from; None for a set that others made."""
    return data_config(store.read_json("manifest.json")["config"]["data"]) if store.exists("manifest.json") else None
