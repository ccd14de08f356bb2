"""The shape of DiT-XL/2-256, for plans and benchmarks that have no weights."""

from d3hr_ray.models.card import ModelCard

DIT_XL = "facebook/DiT-XL-2-256"
# The DiT paper's XL/2 (28 layers x 1152, 16 heads) on Stable Diffusion's VAE.
DIT_XL_CARD = ModelCard(
    latent_shape=(4, 32, 32),
    image_size=256,
    num_classes=1000,
    class_names=None,
    digest="",
    transformer={
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "sample_size": 32,
        "patch_size": 2,
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "activation_fn": "gelu-approximate",
    },
    vae={
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 256,
    },
)
