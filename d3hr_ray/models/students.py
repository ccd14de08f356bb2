"""Networks by name, for any input size: the field's students, and every classifier that timm knows.

To add one, build it in _build and name it in check_arch and EXAMPLES.

timm and torchvision take 10 s to import: a worker that trains a ConvNet, and a driver, do without.

Images are float [-1, 1] BCHW everywhere in this project; a network that wants another normalisation wears `Normalised`.
"""

import difflib
import re
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from d3hr_ray.datasets.normalisation import IMAGENET, Normalisation
from d3hr_ray.models.classifiers import ConvNet, Norm
from d3hr_ray.models.resnet_ap import ResNetAP

CONVNET = re.compile(r"convnet-d(?P<depth>[1-9])(-w(?P<width>\d+))?(-(?P<norm>in|bn))?")
RESNET_AP = re.compile(r"resnetap(?P<depth>10|18|34)(-(?P<norm>in|bn))?")
SMALL_RESNETS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "resnet8-small": ("BasicBlock", (1, 1, 1), (16, 32, 64)),  # He et al. 2016, section 4.2, n = 1
    "resnet18-small": ("BasicBlock", (2, 2, 2, 2), (64, 128, 256, 512)),
    "resnet50-small": ("Bottleneck", (3, 4, 6, 3), (64, 128, 256, 512)),
    "resnet101-small": ("Bottleneck", (3, 4, 23, 3), (64, 128, 256, 512)),
}
ALIASES = {
    "mobilenet_v2": "mobilenetv2_100",
    "vit": "vit_base_patch16_224",
    "swin_v2": "swinv2_tiny_window8_256",
}
# timm's start with the last norm of each block at 0, or drop less; the field's are torchvision's (but D3HR's
# efficientnet_b0).
TORCHVISION_RESNET = re.compile(r"resnet(18|34|50|101|152)(-small|\..*)?")
AS_TORCHVISION: dict[str, dict[str, Any]] = {
    "mobilenetv2_100": {"drop_rate": 0.2},
    "swinv2_tiny_window8_256": {"drop_path_rate": 0.2},
}
VITS = ("vit", "deit")
PLACED = (*VITS, "swin")  # whose embeddings of places are no weights
TORCHVISION = ("alexnet", "vgg11")
OURS = ("mlp", "vgg11-small")
EXAMPLES = (
    "convnet-d3", "convnet-d4", "convnet-d5", "convnet-d6", "convnet-d3-bn", "convnet-d3-w32", "resnet18", "resnet50",
    "resnet101", "resnetap10", "resnetap18-bn", *SMALL_RESNETS, "mobilenet_v2", "efficientnet_b0", "vit", "swin_v2",
    "vgg11", "alexnet", *OURS,
)  # fmt: skip
# AlexNet and VGG-11 halve their input so often that nothing is left of a smaller one: it is enlarged first.
LEAST_SIDE = {"alexnet": 64, "vgg11": 32, "vgg11-small": 32}


class Normalised(nn.Module):
    """A network whose input is normalised with the mean and std of pixels in [0, 1]: images [-1, 1] => logits.

    One that sees one channel is given the mean of three: of grey images, what any of them is.
    """

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(
        self, net: nn.Module, mean: tuple[float, ...] = IMAGENET.mean, std: tuple[float, ...] = IMAGENET.std
    ) -> None:
        super().__init__()
        self.net = net
        scale = 0.5 / torch.tensor(std).view(1, -1, 1, 1)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("offset", (0.5 - torch.tensor(mean).view(1, -1, 1, 1)) * 2 * scale, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S) float [-1, 1] => logits (B, K)."""
        out: torch.Tensor = self.net(self.normalise(images))
        return out

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Images => what the network sees of them, (B, C, S, S) of mean 0 and std 1."""
        seen = images.mean(1, keepdim=True) if self.scale.shape[1] == 1 else images
        return torch.addcmul(self.offset, seen, self.scale)

    def restore(self, seen: torch.Tensor) -> torch.Tensor:
        """The images again, in as many channels as the network sees."""
        return (seen - self.offset) / self.scale


class Fitted(nn.Module):
    """A network that sees images of any size at its own `side`, bilinearly; `antialias` is for those that shrink."""

    def __init__(self, net: nn.Module, side: int, antialias: bool = True) -> None:
        super().__init__()
        self.net, self.side, self.antialias = net, side, antialias

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images of any size => logits."""
        if images.shape[-1] != self.side:
            images = nn.functional.interpolate(images, size=self.side, mode="bilinear", antialias=self.antialias)
        out: torch.Tensor = self.net(images)
        return out


def check_arch(arch: str, image_size: int) -> None:
    """Raise ValueError for an architecture that nobody knows (with close names), or that cannot take the size."""
    if match := CONVNET.fullmatch(arch):
        if 2 ** int(match["depth"]) > image_size:
            raise ValueError(f"--arch {arch} halves {image_size} pixels too often; use a smaller depth")
    elif match := RESNET_AP.fullmatch(arch):
        least = 8 if _norm_of(match) == "bn" else 16  # the norm of an image of one pixel is 0, whatever it was
        if image_size < least:
            raise ValueError(f"--arch {arch} leaves nothing of {image_size} pixels; it takes {least} and more")
    elif arch not in (*SMALL_RESNETS, *ALIASES, *TORCHVISION, *OURS):
        _require_known(arch)


def _require_known(arch: str) -> None:
    import timm

    if not timm.is_model(arch.partition(".")[0]):
        known = [name for names in (EXAMPLES, timm.list_models()) for name in difflib.get_close_matches(arch, names, 3)]
        close = list(dict.fromkeys(known))[:3] or list(EXAMPLES[:3])  # the field's students first
        raise ValueError(f"--arch {arch}: no such architecture; near it: {', '.join(close)}")


def takes_any_size(arch: str) -> bool:
    """Whether a network has no size of its own, as timm's have."""
    return arch in (*SMALL_RESNETS, *OURS) or bool(CONVNET.fullmatch(arch) or RESNET_AP.fullmatch(arch))


def build_student(
    arch: str, num_classes: int, image_size: int, seed: int, norm: Normalisation = IMAGENET
) -> Normalised:
    """A network with random weights: images (B, 3, S, S) in [-1, 1] => logits (B, K). Equal seeds, equal weights.

    Raises ValueError for an unknown architecture or one that cannot take the size.
    """
    check_arch(arch, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            net = _build(arch, num_classes, image_size, norm.channels)
        except (ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
            raise ValueError(f"--arch {arch} cannot take {image_size}-pixel images: {error}") from error
    return Normalised(net, norm.mean, norm.std)


def identity(arch: str, image_size: int) -> str:
    """What a trial's key calls a network: two that differ never share it.

    ConvNets did not always pad 28 pixels, ViTs did not always have the patches that their names say, what torchvision
    has, too, did not always begin as there, and the decay of weights was of embeddings of places, too.
    """
    name = ALIASES.get(arch, arch)
    if image_size == 28 and CONVNET.fullmatch(arch):
        return f"{arch}, padded"
    if _options(name):
        return f"{arch}, as torchvision's"
    if not name.startswith(PLACED):
        return arch
    patch = _patch(name, image_size)
    return f"{arch}, places not decayed" + f", patches of {patch}" * (patch not in (None, _small_patch(image_size)))


def build_on_meta(arch: str, num_classes: int, image_size: int) -> nn.Module:
    """The shape of a network without its weights: can it take the size, and which layers has it? Raises ValueError."""
    with torch.device("meta"):
        return build_student(arch, num_classes, image_size, 0)


def _build(arch: str, classes: int, side: int, channels: int) -> nn.Module:
    if match := CONVNET.fullmatch(arch):
        return ConvNet(classes, side, int(match["width"] or 128), int(match["depth"]), _norm_of(match), channels)
    if match := RESNET_AP.fullmatch(arch):
        return ResNetAP(classes, side, int(match["depth"]), _norm_of(match), channels)
    if arch in SMALL_RESNETS:
        return _small_resnet(arch, classes, channels)
    if arch == "mlp":
        return _mlp(side * side * channels, classes)
    if arch in (*TORCHVISION, *OURS):
        net = _vgg_or_alexnet(arch, classes, channels)
        return Fitted(net, LEAST_SIDE[arch], antialias=False) if side < LEAST_SIDE[arch] else net
    import timm

    name = ALIASES.get(arch, arch)
    return timm.create_model(name, num_classes=classes, in_chans=channels, **_geometry(name, side), **_options(name))


def _options(name: str) -> dict[str, Any]:
    """What makes timm's network begin, and drop, as torchvision's of that name does."""
    return {"zero_init_last": False} if TORCHVISION_RESNET.fullmatch(name) else AS_TORCHVISION.get(name, {})


def _norm_of(match: re.Match[str]) -> Norm:
    """Of a name that may end in -in or -bn."""
    return "bn" if match["norm"] == "bn" else "in"


def _mlp(pixels: int, classes: int, width: int = 128) -> nn.Module:
    """Two hidden layers of 128, as in DC's study across architectures (Zhao et al., ICLR 2021, section 4.1)."""
    layers = [nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


def _vgg_or_alexnet(arch: str, classes: int, channels: int) -> nn.Module:
    """torchvision's; of `vgg11-small` the convolutions alone, with batch norm, and one linear layer after them."""
    import torchvision

    net: Any
    if arch == "vgg11-small":
        vgg = torchvision.models.vgg
        features = vgg.make_layers(vgg.cfgs["A"], batch_norm=True)
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
        net = nn.Sequential(OrderedDict(features=features, head=nn.Sequential(*pooled)))
    else:
        net = getattr(torchvision.models, arch)(num_classes=classes)
    if channels != 3:
        stem = net.features[0]
        net.features[0] = nn.Conv2d(channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding)
    return net


def _small_resnet(arch: str, classes: int, channels: int) -> nn.Module:
    """He et al.'s CIFAR form: a 3x3 stem with stride 1 and no max-pool."""
    block, layers, widths = SMALL_RESNETS[arch]
    if len(layers) == 3:
        return CifarResNet(layers[0], widths, classes, channels)
    from timm.models import resnet

    net: Any = resnet.ResNet(getattr(resnet, block), layers, num_classes=classes, **_options(arch))
    net.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    net.maxpool = nn.Identity()
    return net


class CifarResNet(nn.Module):
    """He et al. (2016, section 4.2): three stages of `blocks` basic blocks. timm's ResNet always has four stages."""

    def __init__(self, blocks: int, widths: tuple[int, ...], classes: int, channels: int = 3) -> None:
        from timm.models.resnet import BasicBlock

        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(True)
        )
        body: list[nn.Module] = []
        width = widths[0]
        for stage, out in enumerate(widths):
            for i in range(blocks):
                stride = 2 if stage and i == 0 else 1
                shortcut = None
                if stride > 1 or width != out:
                    shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
                body.append(BasicBlock(width, out, stride, shortcut))
                width = out
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images => logits."""
        out: torch.Tensor = self.head(self.body(self.stem(images)).mean((2, 3)))
        return out


def _geometry(name: str, side: int) -> dict[str, Any]:
    """Transformers are built for one input size: theirs, with patches small enough that some are left to attend."""
    if name.startswith("swin"):
        # Three mergings halve the grid of patches: it must be a multiple of 8, and windows hold at most all of it.
        return {
            "img_size": side,
            "patch_size": next((p for p in (4, 2, 1) if side % (8 * p) == 0 and side >= 16 * p), 1),
        }
    if not name.startswith(VITS):
        return {}
    if side % 16:
        raise ValueError("the patches of a ViT here need a multiple of 16 pixels")
    patch = _patch(name, side)
    return {"img_size": side} | ({"patch_size": patch} if patch else {})


def _patch(name: str, side: int) -> int | None:
    """The side of a ViT's patches: what its name says, unless too few would be left of smaller images."""
    said = re.search(r"patch(\d+)", name) if name.startswith(VITS) else None
    if said is None:
        return None
    own = int(said[1])
    return own if side % own == 0 and (side >= 224 or side // own >= 8) else _small_patch(side)


def _small_patch(side: int) -> int:
    """The side of patches of which at least 8 lie along a side, where that can be."""
    return max(2, min(16, side // 8))
