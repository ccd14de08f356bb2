"""Teachers: networks whose soft labels a student learns, matched to the set's classes by name, and checked first.

A teacher is a timm name with weights, ARCH=FILE, or a folder of a network that jobs/evaluate.py trained: on real images
(`--teacher train`), or on a set (`--keep-students`).
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from d3hr_ray.config import RunError, as_dict, with_tuples
from d3hr_ray.datasets.classes import imagenet_wnids
from d3hr_ray.datasets.normalisation import IMAGENET, Normalisation
from d3hr_ray.filesystems import absolute
from d3hr_ray.models.card import locate
from d3hr_ray.models.students import Fitted, Normalised, build_on_meta, build_student, takes_any_size
from d3hr_ray.store import Store

WEIGHTS, CARD = "model.safetensors", "card.json"
OWN = "classifier"  # folder of a model's own classifier
HUB = "hf-hub:"  # timm's prefix of models on the Hugging Face hub


@dataclass(frozen=True)
class Target:
    """What a teacher must label: the set's classes (and wnids, if they are ImageNet's) at its side in pixels."""

    classes: tuple[str, ...]
    wnids: tuple[str, ...] | None
    side: int


class Ensemble(nn.Module):
    """Several teachers as one: their logits are averaged, as in D3HR's 5-teacher variant."""

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images => mean logits."""
        return torch.stack([teacher(images) for teacher in self.teachers]).mean(0)


class Columns(nn.Module):
    """A network that answers only for some of its classes, in another order."""

    def __init__(self, net: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("columns", torch.tensor(list(columns)), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images => logits of the chosen classes."""
        out: torch.Tensor = self.net(images)[:, self.columns]
        return out


def load_teachers(names: Sequence[str], target: Target, device: str) -> nn.Module:
    """Names as of --teacher => one frozen network: images (B, 3, S, S) [-1, 1] => logits over the target's classes.

    Raises ValueError for one that does not exist, or that does not know the classes or the size.
    """
    teachers = [load_teacher(name, target) for name in names]
    joined = (teachers[0] if len(teachers) == 1 else Ensemble(teachers)).to(device).eval()
    return joined.requires_grad_(False)


def _file(name: str) -> tuple[str, str] | None:
    """(ARCH, FILE) of ARCH=FILE. A folder's URI may have an = in its query."""
    arch, equals, path = name.partition("=")
    return (arch, path) if equals and "://" not in arch else None


def load_teacher(name: str, target: Target) -> nn.Module:
    """One teacher, on the CPU."""
    if file := _file(name):
        arch, path = file
        return _from_file(arch, path, target)
    store = Store(absolute(name))
    if store.exists(CARD):
        return _from_folder(store, target)
    _refuse_folder(name)
    return _from_timm(name, target)


def _refuse_folder(name: str) -> None:
    """Raise ValueError for the name of a folder, where a network of timm's is what is left."""
    if "/" in name and not name.startswith(("timm/", HUB)):
        raise ValueError(
            f"--teacher {name}: no {CARD} in it; give a folder of `--teacher train` or `--keep-students`, or ARCH=FILE"
        )


def own_classifier(model: str) -> str | None:
    """The folder of the classifier that comes with a model, as with some embedded ones; None without one."""
    own = Path(locate(model)) / OWN
    return str(own) if (own / CARD).is_file() else None


def side_of(name: str, shown: int) -> int:
    """Pixels that a teacher wants its images at; a file of a network without a size of its own, those they are `shown`
    at.
    """
    store = Store(absolute(name))
    if "=" not in name and store.exists(CARD):
        return int(store.read_json(CARD)["image_size"])
    if (file := _file(name)) and takes_any_size(file[0]):
        return shown
    import timm  # takes 10 s to import

    known = timm.get_pretrained_cfg(name.removeprefix("timm/"), allow_unregistered=True) if "=" not in name else None
    return int(known.input_size[-1]) if known is not None else 224


def resolve(name: str) -> str:
    """A teacher's name as every worker understands it: relative paths made absolute."""
    if file := _file(name):
        return f"{file[0]}={absolute(file[1])}"
    return absolute(name) if Store(absolute(name)).exists(CARD) else name


def teacher_id(names: Sequence[str]) -> str:
    """What a result row calls its teacher: the names, with a hash of the weights where they are files.

    Raises ValueError for a file or folder that is not there.
    """
    return "+".join(_identity(name) for name in names)


def _identity(name: str) -> str:
    store = Store(absolute(name))
    if file := _file(name):
        return f"{file[0]}@{hashlib.sha256(_read_file(*file)).hexdigest()[:8]}"
    if store.exists(CARD):
        card = store.read_json(CARD)
        return f"{card['arch']}@{card['weights'][:8]}"
    _refuse_folder(name)
    return name


def save_teacher(
    store: Store,
    arch: str,
    classes: Sequence[str],
    side: int,
    weights: dict[str, torch.Tensor],
    facts: dict[str, Any],
    norm: Normalisation = IMAGENET,
) -> None:
    """Write a trained network as a teacher's folder: safetensors, and a card with its classes in order.

    Cards tell of another normalisation than ImageNet's alone.
    """
    data = safetensors.torch.save({k: v.contiguous() for k, v in weights.items()})
    store.write_bytes(WEIGHTS, data)
    card = {"arch": arch, "classes": list(classes), "image_size": side} | facts
    card |= {} if norm == IMAGENET else {"normalisation": as_dict(norm)}
    store.write_json(CARD, card | {"weights": hashlib.sha256(data).hexdigest()})


def _from_folder(store: Store, target: Target) -> nn.Module:
    card = store.read_json(CARD)
    if card["image_size"] != target.side:
        raise ValueError(
            f"--teacher {store.uri} takes {card['image_size']} pixels and the students {target.side}; "
            "train another with --teacher train, or give --image-size"
        )
    data = store.read_bytes(WEIGHTS)
    if hashlib.sha256(data).hexdigest() != card["weights"]:
        raise RunError(f"--teacher {store.uri}: {WEIGHTS} is not the file that was saved; train it again")
    norm = Normalisation(**with_tuples(card["normalisation"])) if "normalisation" in card else IMAGENET
    net = build_student(card["arch"], len(card["classes"]), card["image_size"], 0, norm)
    try:
        net.load_state_dict(safetensors.torch.load(data))
    except RuntimeError as error:
        raise RunError(
            f"--teacher {store.uri}: its weights are of another {card['arch']} than this version's; delete the folder "
            "and train it again with --teacher train"
        ) from error
    return _match(net, tuple(card["classes"]), target, store.uri)


def _from_file(arch: str, path: str, target: Target) -> nn.Module:
    """A state dict in a .safetensors or .pt file, over the set's classes in its order, or ImageNet-1K's."""
    state = _read_state(arch, path)
    count = _outputs(arch, state, target.side)
    known = imagenet_wnids() if count == 1000 else target.wnids or target.classes
    if count != len(known):
        raise ValueError(f"--teacher {arch}={path} has {count} classes and the set {len(known)}; give its own teacher")
    net = build_student(arch, count, target.side, 0)
    inner: nn.Module = net if any(k.startswith("net.") for k in state) else net.net
    if isinstance(inner, Fitted):
        inner = inner.net
    try:
        inner.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"--teacher {arch}={path}: the weights are not {arch}'s ({str(error)[:200]})") from error
    return _match(net, known, target, path)


def _read_file(arch: str, path: str) -> bytes:
    file = Store(absolute(path))
    if not file.at("..").exists(file.name):
        raise ValueError(f"--teacher {arch}={path}: no such file")
    return file.at("..").read_bytes(file.name)


def _read_state(arch: str, path: str) -> dict[str, torch.Tensor]:
    """The weights in a file, alone or beside what a training script saves with them."""
    data = _read_file(arch, path)
    try:
        if path.endswith(".safetensors"):
            state: Any = safetensors.torch.load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes make the unpicklers raise nine kinds, from IndexError to struct.error
        raise ValueError(f"--teacher {arch}={path} is no checkpoint of weights ({str(error)[:200]})") from error
    if not isinstance(state, dict):
        raise ValueError(f"--teacher {arch}={path} is no checkpoint of weights (it holds a {type(state).__name__})")
    state = next((state[k] for k in ("state_dict", "model") if isinstance(state.get(k), dict)), state)
    tensors = {
        k.removeprefix("module."): v for k, v in state.items() if isinstance(v, torch.Tensor) and isinstance(k, str)
    }
    if not any(v.ndim == 2 for v in tensors.values()):
        raise ValueError(f"--teacher {arch}={path} holds no linear layer: it is no classifier's state dict")
    return tensors


def _outputs(arch: str, state: Mapping[str, torch.Tensor], side: int) -> int:
    """Classes of a checkpoint, by the layer that is last in the network: a file may have its layers in any order."""
    layers = [name for name, layer in build_on_meta(arch, 2, side).named_modules() if isinstance(layer, nn.Linear)]
    names = [layers[-1].removeprefix("net." * times) for times in range(3)] if layers else []
    head = next((state[f"{name}.weight"] for name in names if f"{name}.weight" in state), None)
    return int((head if head is not None else [v for v in state.values() if v.ndim == 2][-1]).shape[0])


def _from_timm(name: str, target: Target) -> nn.Module:
    import timm  # takes 10 s to import

    plain = name.removeprefix("timm/")
    if not plain.startswith(HUB) and not timm.is_model_pretrained(plain):  # the hub alone knows what it holds
        raise ValueError(f"--teacher {name}: no timm model with weights, no folder of --teacher train, no ARCH=FILE")
    try:
        net: Any = timm.create_model(plain, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"--teacher {name}: its weights cannot be had ({why}); download them and give ARCH=FILE"
        ) from error
    facts = net.pretrained_cfg
    side = facts["input_size"][-1]
    if facts.get("fixed_input_size") and side != target.side:
        raise ValueError(
            f"--teacher {name} takes {side} pixels and the students {target.side}; give --image-size {side}"
        )
    known = facts.get("label_names") or (imagenet_wnids() if facts["num_classes"] == 1000 else ())
    if facts["num_classes"] != len(known):
        raise ValueError(f"--teacher {name} knows {facts['num_classes']} classes without names, not ImageNet-1K's")
    return _match(Normalised(net, facts["mean"], facts["std"]), tuple(known), target, name)


def _match(net: nn.Module, known: tuple[str, ...], target: Target, name: str) -> nn.Module:
    """The network with its outputs in the target's class order, matched by wnid or by name."""
    for wanted in filter(None, (target.wnids, target.classes)):
        if set(wanted) <= set(known):
            columns = [known.index(c) for c in wanted]
            return net if columns == list(range(len(known))) else Columns(net, columns)
    missing = next(c for c in target.wnids or target.classes if c not in known)
    raise ValueError(f"--teacher {name} does not know class {missing!r} (it knows {', '.join(known[:4])}, ...)")
