"""The networks to train: new ones of a given shape, or a model's own with its class embedding fitted to new classes.

diffusers takes 10 s to import: wrong data is told before, so it comes in late.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from d3hr_ray.datasets.classes import build_class_map
from d3hr_ray.models.card import ModelCard, locate, read_card
from d3hr_ray.models.flops import STEP, denoiser_flop, forward_flop
from d3hr_ray.models.loading import load_part
from d3hr_ray.models.speed import GPU_TFLOPS
from d3hr_ray.pretraining.settings import Architecture, PretrainConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel


@dataclass(frozen=True)
class Networks:
    """A diffusers VAE, DiT and scheduler, float32, on the CPU."""

    vae: "AutoencoderKL"
    transformer: "DiTTransformer2DModel"
    scheduler: "DDIMScheduler"

    def parameters(self) -> dict[str, int]:
        """Parameters of each network."""
        networks = {"vae": self.vae, "transformer": self.transformer}
        return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


def describe(config: PretrainConfig, num_classes: int) -> str:
    """How large what is trained is: the images' side, the latents, each network's parameters; and what a DiT costs that
    takes hours of a GPU. Allocates nothing.
    """
    if config.init is not None:
        card = read_card(config.init)
        latents, words = card.latent_shape, f"the networks of {config.init}"
        forward = forward_flop(card)
    else:
        shape = config.architecture
        with torch.device("meta"):
            networks = Networks(new_vae(shape), new_transformer(shape, num_classes), new_scheduler())
        latents = (shape.latent_channels, shape.latent_side, shape.latent_side)
        words = ", ".join(f"{name} of {count:,} parameters" for name, count in networks.parameters().items())
        forward = denoiser_flop(networks.transformer, latents)
    flop = STEP * forward * config.dit.batch_size * config.dit.steps
    hours = flop / (GPU_TFLOPS * 1e12) / 3600
    cost = f"; the DiT's {config.dit.steps:,} steps take {hours:,.0f} hours of an H100 or more" if hours >= 1 else ""
    return f"images of {config.image_size} pixels, latents {'x'.join(map(str, latents))}, {words}{cost}"


def build(config: PretrainConfig, class_names: Sequence[str]) -> Networks:
    """New networks with seeded weights, or those of `config.init` with one class embedding per name."""
    if config.init is not None:
        return _loaded(config.init, class_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.blake2b(str(config.seed).encode(), digest_size=6).digest(), "little"))
        vae, transformer = new_vae(config.architecture), new_transformer(config.architecture, len(class_names))
    return Networks(vae, transformer, new_scheduler())


def new_vae(shape: Architecture) -> "AutoencoderKL":
    """A VAE with random weights; its scaling factor is set once it is trained."""
    from diffusers import AutoencoderKL

    depth = len(shape.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=shape.vae_channels,
        layers_per_block=shape.vae_layers,
        latent_channels=shape.latent_channels,
        norm_num_groups=8,
        sample_size=shape.image_size,
        scaling_factor=1.0,
    )


def new_transformer(shape: Architecture, num_classes: int) -> "DiTTransformer2DModel":
    """A DiT with random weights that predicts noise only, no sigma, and starts at zero as the paper's does."""
    from diffusers import DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=shape.dit_heads,
        attention_head_dim=shape.dit_width // shape.dit_heads,
        in_channels=shape.latent_channels,
        out_channels=shape.latent_channels,
        num_layers=shape.dit_layers,
        sample_size=shape.latent_side,
        patch_size=shape.patch_size,
        num_embeds_ada_norm=num_classes,
    )
    # DiT (Peebles and Xie, 2023), section 3.2, adaLN-Zero: every block is the identity at first; so is the last layer.
    gates = [block.norm1.linear for block in transformer.transformer_blocks]
    for layer in (*gates, transformer.proj_out_1, transformer.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for block in transformer.transformer_blocks:
        torch.nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
    return transformer


def new_scheduler() -> "DDIMScheduler":
    """The linear schedule of 1,000 steps that DiT was trained with, walked by diffusers' 'leading' grid."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=True, steps_offset=0)


def _loaded(init: str, class_names: Sequence[str]) -> Networks:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel

    where, card = locate(init), read_card(init)
    vae = load_part(AutoencoderKL, where, "vae", torch.float32)
    transformer = load_part(DiTTransformer2DModel, where, "transformer", torch.float32)
    scheduler = DDIMScheduler.from_pretrained(where, subfolder="scheduler")
    for part in (vae, transformer):
        part.register_to_config(_name_or_path="")  # a private path that diffusers would save
    rows = [_known_row(name, class_names, card) for name in class_names] + [card.num_classes]
    return Networks(vae, _with_classes(transformer, rows), scheduler)


def _known_row(name: str, class_names: Sequence[str], card: ModelCard) -> int:
    """The model's id of a class it knows by name, else its null class: the best guess for what it never saw.

    A name that two classes of ImageNet have is told apart by the others beside it, if the model knows them all.
    """
    try:
        return build_class_map(class_names, [name], card.num_classes, card.class_names).model_classes[0]
    except ValueError:
        return card.num_classes


def _with_classes(transformer: "DiTTransformer2DModel", rows: Sequence[int]) -> "DiTTransformer2DModel":
    """The same DiT with class embedding rows picked from its own, in every block; the last row is the null class."""
    if list(rows) == list(range(transformer.config.num_embeds_ada_norm + 1)):
        return transformer
    fitted = type(transformer).from_config({**transformer.config, "num_embeds_ada_norm": len(rows) - 1})
    weights = transformer.state_dict()
    for name in weights:
        if name.endswith("class_embedder.embedding_table.weight"):
            weights[name] = weights[name][list(rows)]
    fitted.load_state_dict(weights)
    return fitted
