"""The classifier that CaO2 asks of each candidate: is this its class, and how sure is that?

Any teacher of the evaluation can judge: a timm name with weights, ARCH=FILE, a folder of `--teacher train` or
`--keep-students`, or the one that comes with the embedded models. Its classes are matched to the run's by wnid or name.
A learner, which says what it has still to learn from a candidate, is another such.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import torch
from torch import nn

from d3hr_ray.config import RunConfig
from d3hr_ray.datasets.classes import names_and_wnids
from d3hr_ray.models.card import read_card
from d3hr_ray.models.students import Fitted, Normalised
from d3hr_ray.models.teachers import Target, load_teacher, own_classifier, resolve, side_of, teacher_id

BATCH = 256


class Judge:
    """A frozen classifier over the run's classes, whatever size it wants its images in."""

    def __init__(self, net: nn.Module, side: int, device: str) -> None:
        self.net, self.device = Fitted(net, side).eval().requires_grad_(False).to(device), device
        self.clamps = True  # as the images will be when they are saved

    @torch.inference_mode()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) [-1, 1] => (N, K) probabilities of the run's classes, on the CPU."""
        return torch.cat([logits.softmax(1).cpu() for logits in self._logits(images)])

    @torch.inference_mode()
    def losses(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) [-1, 1] and labels (N,) => cross-entropies (N,) in nats, on the CPU."""
        logits = torch.cat([part.cpu() for part in self._logits(images)])
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    def _logits(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in images.split(BATCH):
            seen = part.to(self.device)
            yield self.net(seen.clamp(-1, 1) if self.clamps else seen).float()


def judge_name(config: RunConfig) -> str:
    """The classifier to load, by a name that every worker understands.

    Raises ValueError if none is named and the model has none of its own.
    """
    if config.cao2.classifier is not None:
        return resolve(config.cao2.classifier)
    own = own_classifier(config.model.name)
    if own is None:
        raise ValueError(
            f"--classifier is needed: --model {config.model.name} comes without one; give a timm name, ARCH=FILE, "
            "or a folder that jobs/evaluate.py --teacher train made"
        )
    return own


def judge_ids(config: RunConfig) -> dict[str, str]:
    """What recipes call the classifier and, if there is one, the learner; nothing where no candidate is judged.

    That is a name, with a hash of the weights where they are files. Raises ValueError for one that does not exist.
    """
    if config.cao2.select == "none":
        return {}
    names = {"classifier": judge_name(config)}
    if config.cao2.learner is not None:
        names["learner"] = resolve(config.cao2.learner)
    found = {}
    for role, name in names.items():
        with _called(role):
            found[role] = teacher_id((name,))
    return found


def load_judge(config: RunConfig, classes: pa.Table, device: str) -> Judge:
    """The run's classifier. Raises ValueError for one that does not exist or does not know the classes.

    The authors feed theirs what the VAE puts out, about [-1, 1], neither clamped nor normalised as ImageNet's;
    `official` does so too.
    """
    judge = load_classifier(judge_name(config), classes, device, _shown(config))
    if config.has_quirk("normalisation"):
        judge.clamps = False
        for module in judge.net.modules():
            if isinstance(module, Normalised):
                module.scale, module.offset = torch.ones_like(module.scale), torch.zeros_like(module.offset)
    return judge


def load_learner(config: RunConfig, classes: pa.Table, device: str) -> Judge:
    """The network of --learner, that normalises as it was trained to. Raises as load_judge does."""
    assert config.cao2.learner is not None, "asked for by the config"
    return load_classifier(config.cao2.learner, classes, device, _shown(config), "learner")


def _shown(config: RunConfig) -> int:
    """Pixels of the images that are judged: the model's."""
    return read_card(config.model.name).image_size


def load_classifier(name: str, classes: pa.Table, device: str, shown: int, role: str = "classifier") -> Judge:
    """A classifier by its name from `judge_name`, that normalises as it was trained to, of images `shown` at so many
    pixels. Raises as load_judge does.
    """
    side = side_of(name, shown)
    target = Target(*names_and_wnids(classes), side)
    with _called(role):
        net = load_teacher(name, target)
    return Judge(net, side, device)


@contextmanager
def _called(role: str) -> Iterator[None]:
    """A refusal of a teacher names the flag that it was given by."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("--teacher", f"--{role}", 1)) from error
