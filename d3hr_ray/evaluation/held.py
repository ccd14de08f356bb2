"""Images in Ray's object store, made by tasks and read in place by the workers of a node; a driver holds none."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from d3hr_ray.evaluation.images import Images, Loadable, nbytes
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.runtime.capacity import voicing
from d3hr_ray.runtime.tasks import fetch, ray_map
from d3hr_ray.runtime.telemetry import LOG

READING = "reading images"  # what a failure is named after


@dataclass(frozen=True)
class Held:
    """Images that are an object of Ray's. It is this process's own: it stays while this is kept."""

    ref: ray.ObjectRef
    classes: tuple[str, ...]
    side: int
    count: int
    digest: str

    def __len__(self) -> int:
        return self.count

    def load(self, glance: bool = False) -> Images:
        """All of them, where they lie on this node; only a glance is copied."""
        if not glance:
            return ray.get(self.ref)
        shown: Images = fetch(ray.remote(num_cpus=0)(_glance).remote(self.ref), READING)
        return shown


def hold(make: Callable[..., Images], *args: Any) -> Held:
    """Images that a task makes. Raises what it raises for users."""

    def made(*args: Any) -> tuple[dict[str, Any], Images]:
        images = make(*args)
        facts = {"classes": images.classes, "side": images.side, "count": len(images), "digest": images.digest}
        return facts | {"notes": images.notes}, images

    told, ref = ray.remote(num_cpus=1, num_returns=2, max_retries=3)(made).remote(*args)
    with voicing(READING, 0):
        facts = fetch(told, READING)
    _tell(facts.pop("notes"))
    return Held(ref, **facts)


def hashed(sets: Sequence[DistilledSet]) -> list[DistilledSet]:
    """The sets with their hashes; where only the images can tell one, a task reads them and keeps none."""
    unknown = [found.images for found in sets if not found.set_hash]
    surveys = iter(ray_map(lambda images: images.survey(), unknown))
    return [found if found.set_hash else _surveyed(found, *next(surveys)) for found in sets]


def _surveyed(found: DistilledSet, digest: str, notes: tuple[str, ...]) -> DistilledSet:
    _tell(f"{found.name}: {line}" for line in notes)
    return replace(found, set_hash=digest)


def _tell(notes: Iterable[str]) -> None:
    for line in notes:
        LOG.warning(line)


def lend(images: Mapping[str, Loadable], test: Loadable, here: bool) -> Callable[[str], Images]:
    """Key => images, for workers on any node; or, without workers, for this process, which holds one set at a time."""
    if here:
        held: dict[str, Images] = {}

        def take(key: str) -> Images:
            if key not in held:
                held.clear()
                held[key] = images[key].load()
            return held[key]

        return take
    say_if_tight("the test images and the largest set", nbytes(test) + max(map(nbytes, images.values())))
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    shelf = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Shelf)
    return partial(_borrow, shelf.options(scheduling_strategy=node).remote(dict(images)))


def _borrow(shelf: Any, key: str) -> Images:
    (ref,) = ray.get(shelf.take.remote(key, ray.get_runtime_context().get_node_id()))
    images: Images = fetch(ref, READING)
    return images


class Shelf:
    """An actor beside the driver that owns the sets' objects, one each, made when first asked for.

    Where they do not all fit, the one that was asked for longest ago is let go, and made anew if it is asked for again;
    who trains on it keeps it until then.
    """

    def __init__(self, images: dict[str, Loadable]) -> None:
        self.images = images
        self.held: OrderedDict[str, ray.ObjectRef] = OrderedDict()

    def take(self, key: str, node: str) -> list[ray.ObjectRef]:
        """The set's object, made on the node that asks. In a list, as a bare one would be sent as what it holds."""
        if key not in self.held:
            self.held[key] = self._make(self.images[key], node)
        self.held.move_to_end(key)
        room = ray.cluster_resources().get("object_store_memory", 0) / 2
        while len(self.held) > 1 and sum(nbytes(self.images[k]) for k in self.held) > room:
            self.held.popitem(last=False)
        return [self.held[key]]

    def _make(self, images: Loadable, node: str) -> ray.ObjectRef:
        if isinstance(images, Held):
            return images.ref
        # Without a CPU of its own: trials may have taken them all, and they wait for this.
        task = ray.remote(num_cpus=0, max_retries=3)(_load)
        return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote(images)


def _load(images: Loadable) -> Images:
    return images.load()


def _glance(images: Images) -> Images:
    return images.load(glance=True)


def say_if_tight(what: str, needed: int) -> None:
    """Say it where so many bytes do not fit a node's object store: it works, on disk."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    room = min((n.get("object_store_memory", 0) for n in nodes), default=needed)
    if needed > room:
        LOG.warning(
            f"evaluate: {what}: {needed / 2**30:.1f} GiB, and a node's object store has {room / 2**30:.1f} GiB: Ray "
            "keeps the rest on disk, which is slower; start nodes with a larger --object-store-memory, or give a "
            "smaller --image-size"
        )
