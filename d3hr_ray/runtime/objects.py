"""Images in Ray's object store, made by tasks and read in place by the workers of a node; a driver holds none.

What they are for is not known here: who trains or tests takes them by a key.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from d3hr_ray.datasets.images import Images, Loadable, nbytes
from d3hr_ray.runtime.capacity import warn_while_unschedulable
from d3hr_ray.runtime.console import LOG
from d3hr_ray.runtime.tasks import fetch

READING = "reading images"  # what a failure is named after
MOST_BYTES = 64 << 30  # of images in one object


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

    known, ref = ray.remote(num_cpus=1, num_returns=2, max_retries=3)(made).remote(*args)
    with warn_while_unschedulable(READING, 0):
        facts = fetch(known, READING)
    for line in facts.pop("notes"):
        LOG.warning(line)
    return Held(ref, **facts)


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
    warn_if_tight("the test images and the largest set", nbytes(test) + max(map(nbytes, images.values())))
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


def require_room(flag: str, images: Loadable, cure: str) -> None:
    """Raise ValueError for images of a flag that no node would hold, with what to do."""
    if (size := nbytes(images)) > MOST_BYTES:
        raise ValueError(f"{flag} would hold {len(images):,} images ({size >> 30} GiB) in memory; use {cure}")


def warn_if_tight(what: str, needed: int) -> None:
    """Warn where so many bytes do not fit a node's object store: then Ray keeps the rest on disk, which is slower."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    room = min((n.get("object_store_memory", 0) for n in nodes), default=needed)
    if needed > room:
        LOG.warning(
            f"{READING}: {what} take {needed / 2**30:.1f} GiB, but a node's object store has {room / 2**30:.1f} GiB. "
            "Ray keeps the rest on disk, which is slower; start nodes with a larger --object-store-memory, or give a "
            "smaller --image-size"
        )
