"""GANs of images, with the bottleneck and without: the rows of the menu that train them."""

from dataclasses import replace
from typing import Any

from vdbjax.bottleneck import BottleneckConfig
from vdbjax.images import gan

PLACES = 16
"""Of the code, 4 x 4."""

VDB = BottleneckConfig(
    latent_size=256, info_constraint=0.1, mean_scale=0.1, beta_init=0.1 / PLACES, dual_step_size=1e-5
)
"""VDB appendix E.1, which names no start of beta. The released code's 0.1 is the price of the *mean* KL of the
places; of their sum, an image's, the same price is 0.1/16. With `--kl per-place` give `--bottleneck.beta-init 0.1`.

Codes start near the prior. From torch's own start, dozens of budgets away from it, beta is driven up, and when the
codes have come near they fall far below the budget: beta comes down by dual_step_size times Ic an iteration at most.
The paper's step is for its 750,000 iterations; a run of a thousand needs one of about 3e-3, and with it a damping of
0.5, without which KL and beta swing (benchmarks/gan_control.py)."""

FIGURE_8 = {
    "gan": gan.Config(),
    "gan-noise": gan.Config(instance_noise=1.0, generator_code="draw"),
    "gan-sn": gan.Config(spectral_norm=True),
    "gan-gp": gan.Config(r1=10.0),
    "wgan-gp": gan.Config(game="wasserstein", wgan_gp=10.0),
    "vgan": gan.Config(bottleneck=VDB),
    "vgan-sn": gan.Config(bottleneck=VDB, spectral_norm=True),
    "vgan-gp": gan.Config(bottleneck=VDB, r1=10.0),
}
"""The rows of VDB Figure 8, on CIFAR-10."""


def of_width(config: gan.Config, filters: int) -> gan.Config:
    """The config with so many channels at the images' own size; other widths, code and noise in proportion."""
    share = filters / config.filters
    bottleneck = config.bottleneck
    if bottleneck:
        bottleneck = replace(bottleneck, latent_size=max(1, round(share * bottleneck.latent_size)))
    return replace(
        config,
        bottleneck=bottleneck,
        filters=filters,
        max_filters=max(1, round(share * config.max_filters)),
        noise_size=max(1, round(share * config.noise_size)),
    )


def _celeba(name: str) -> gan.Config:
    """128 x 128."""
    config = FIGURE_8[name]
    vdb = replace(VDB, latent_size=1024, info_constraint=0.2) if config.bottleneck else None
    return replace(config, bottleneck=vdb, filters=64, max_filters=1024, batch_size=32, average_half_life=22.2)


def _celebahq(name: str, batch_size: int) -> gan.Config:
    """1024 x 1024."""
    config = FIGURE_8[name]
    vdb = replace(VDB, latent_size=512) if config.bottleneck else None
    half_life = 0.693 * batch_size
    sizes: dict[str, Any] = {"filters": 16, "max_filters": 512, "batch_size": batch_size, "flip": False}
    return replace(config, bottleneck=vdb, average_half_life=half_life, **sizes)


VGAN_SMALL = replace(
    FIGURE_8["vgan-gp"],
    bottleneck=replace(VDB, latent_size=64, dual_step_size=1e-3, damping=0.5),
    filters=8,
    max_filters=64,
    noise_size=64,
    batch_size=32,
    learning_rate=2e-4,
    average_half_life=5.0,
)
"""For two cores: a sixteenth of the arithmetic; beta moves as far in an hour as the paper's in its 750,000 steps."""

GANS = (
    ("vgan-small", "VGAN with gradient penalty that trains in an hour on two cores", VGAN_SMALL, 20_000),
    ("gan", "GAN of CIFAR-10 (VDB Figure 8): 2.3 million parameters", FIGURE_8["gan"], 750_000),
    ("gan-noise", "GAN with noise on the discriminator's last features", FIGURE_8["gan-noise"], 750_000),
    ("gan-sn", "GAN with spectral normalisation", FIGURE_8["gan-sn"], 750_000),
    ("gan-gp", "GAN with gradient penalty (R1)", FIGURE_8["gan-gp"], 750_000),
    ("wgan-gp", "Wasserstein GAN with gradient penalty", FIGURE_8["wgan-gp"], 750_000),
    ("vgan", "GAN with the bottleneck", FIGURE_8["vgan"], 750_000),
    ("vgan-sn", "GAN with the bottleneck and spectral normalisation", FIGURE_8["vgan-sn"], 750_000),
    ("vgan-gp", "GAN with the bottleneck and gradient penalty", FIGURE_8["vgan-gp"], 750_000),
    ("gan-celeba128", "GAN of CelebA 128 x 128: 62 million parameters", _celeba("gan"), 300_000),
    ("gan-gp-celeba128", "the same with gradient penalty", _celeba("gan-gp"), 300_000),
    ("vgan-celeba128", "the same with the bottleneck", _celeba("vgan"), 300_000),
    ("vgan-gp-celeba128", "the same with both", _celeba("vgan-gp"), 300_000),
    ("gan-gp-celebahq1024", "GAN of CelebA-HQ 1024 x 1024, gradient penalty", _celebahq("gan-gp", 24), 300_000),
    ("vgan-gp-celebahq1024", "the same with the bottleneck", _celebahq("vgan-gp", 8), 300_000),
)
"""Name, description, config, iterations."""
