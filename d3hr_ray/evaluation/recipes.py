"""Protocols as a run asks for them: by name, for handwriting, without augmentation, and with what its flags change."""

from dataclasses import dataclass, field, replace

from d3hr_ray.evaluation.protocols import NO_AUGMENT, PROTOCOLS, Precision, Protocol, Setting

FULL_EPOCHS = 90  # a protocol made for 10,000 images need not see 1.28 M as often
# Under hard labels and soft ones alike; for handwriting, where a mirrored or half-cropped glyph is another glyph.
GLYPH_STEPS = 200
# Handwriting has versions of its own: it has no crops, so what changes in those leaves its results comparable.
GLYPH_VERSIONS = dict.fromkeys(("rded-soft", "d3hr-soft", "hard-mixup"), "2-glyphs2")


def for_glyphs(protocol: Protocol) -> Protocol:
    """The protocol for 16-pixel handwriting: shifts by a pixel for crops and flips, and 200 steps of 64 images.

    A number of steps, not of epochs, gives every IPC, and the full set, the same optimisation: under soft labels
    compute dominates (arXiv 2604.18811). dc and dsa were made for small grey images: they stay, without DSA's flips.
    """
    if protocol.input == "data":
        kept = tuple(name for name in protocol.augment.families if name != "flip")
        return replace(protocol, augment=replace(protocol.augment, families=kept))
    augment = replace(protocol.augment, crop_scale=None, flip=False, shift=1, strips=1, jitter=0.0, lighting=0.0)
    if protocol.labels == "hard" and protocol.augment.mix == "cutmix":
        augment = replace(augment, mix="none")
    return replace(
        protocol,
        version=GLYPH_VERSIONS.get(protocol.name, "1-glyphs2"),
        augment=augment,
        batch_size=64,
        steps=GLYPH_STEPS * (3 if protocol.name == "teacher" else 1),
        temperature=4.0,
        optimizer="adamw",
        lr=4e-3,
        weight_decay=1e-3,
        rate="cosine" if protocol.rate in ("steps", "floored-steps") else protocol.rate,
        warmup=0.1,
    )


def upright(protocol: Protocol) -> Protocol:
    """The same protocol without flips, as another version."""
    augment = replace(protocol.augment, flip=False)
    return replace(protocol, augment=augment, version=f"{protocol.version}-upright")


def without_augment(protocol: Protocol) -> Protocol:
    """The same protocol on images as they are, for the augmentation robustness score (arXiv 2505.13300)."""
    return replace(protocol, name=f"{protocol.name}-noaug", augment=NO_AUGMENT)


@dataclass(frozen=True)
class Overrides:
    """What the command line may change in a protocol; a changed one is another version."""

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How protocols are made for a run: what changes them, and how often the full set is seen at most.

    `weighted` and `precision` make each so; weights, and another precision than float32, make it another version.
    `upright` is for images whose mirror images are of no class, as MNIST's are.
    """

    glyphs: bool = False
    full_epochs: int = FULL_EPOCHS
    overrides: Overrides = field(default_factory=Overrides)
    weighted: bool = False
    precision: Precision = "float32"
    upright: bool = False

    def make(self, name: str, setting: Setting) -> Protocol:
        """The protocol of a name (with -noaug: without augmentation). Raises ValueError for an unknown one."""
        base = name.removesuffix("-noaug")
        if base not in PROTOCOLS:
            raise ValueError(f"--protocol {name}: no such protocol; there are {', '.join(PROTOCOLS)}")
        made = PROTOCOLS[base](setting)
        made = for_glyphs(made) if self.glyphs else made
        made = without_augment(made) if name != base else made
        made = upright(made) if self.upright and made.augment.flip else made
        given = {k: v for k, v in vars(self.overrides).items() if v is not None}
        changes = [f"{k}={v:g}" for k, v in sorted(given.items())] + ["weights"] * self.weighted
        changes += [self.precision] * (self.precision != "float32")
        if not changes:
            return made
        given |= {"steps": None} if "epochs" in given else {}
        version = f"{made.version}+{','.join(changes)}"
        return replace(made, **given, weighted=self.weighted, precision=self.precision, version=version)
