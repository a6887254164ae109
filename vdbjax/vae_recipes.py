"""Hierarchical VAEs in their sizes: the rows of the menu that train them."""

from vdbjax.images import two_stage, vdvae

VDVAE_SVHN = vdvae.Config()
"""Appendix A.1: 48 layers, 5.0 million parameters at 32 x 32 x 3; of the encoder's depth the paper says nothing."""

VDVAE_CELEBA64 = vdvae.Config(
    gamma=13.8,
    resolutions=(1, 4, 8, 16, 32, 64),
    layers=(2, 4, 10, 16, 16, 8),
    encoder_blocks=(3, 4, 7, 7, 12, 8),
    batch_size=16,
)

VDVAE_CIFAR10 = vdvae.Config(
    gamma=None,
    layers=(1, 3, 6, 11, 22),
    width=384,
    bottleneck_width=96,
    posterior="direct",
    observation="mixture",
    second_decay=0.9,
    weight_decay=0.01,
    average_decay=0.9999,
)
"""VDVAE (Child 2020) as its code has it: 43 layers, 39.1 million parameters at 32 x 32 x 3."""

VDVAE_SMALL = vdvae.Config(
    gamma=20.0,
    layers=(1, 2, 3, 3, 2),
    encoder_blocks=(1, 1, 2, 2, 2),
    width=32,
    bottleneck_width=16,
    latents=8,
    scan=False,
    learning_rate=1e-3,
    average_decay=0.99,
    dual_step_size=5e-4,
)
"""For two cores."""

TWO_STAGE = two_stage.Config()
"""Figure 7 has first gammas of 6.6 (SVHN) and 13.8 (CelebA), second ones of 2 to 0.05 and 3 to 0.3: `--gamma` gives
any. vdvae-svhn's 8 is that of Figure 4."""

TWO_STAGE_SMALL = two_stage.Config(gamma=5.0, scan=False, learning_rate=1e-3, average_decay=0.99, dual_step_size=5e-4)

VAES = (
    ("vdvae-small", "distortion-targeted hierarchical VAE for two cores", VDVAE_SMALL, 4_000),
    ("vdvae-svhn", "the same of Mind Your Bits and Errors: 48 layers", VDVAE_SVHN, 350_000),
    ("vdvae-celeba64", "the same with 8 more layers at 64 x 64", VDVAE_CELEBA64, 350_000),
    ("vdvae-cifar10", "VDVAE (Child 2020) of CIFAR-10: 39.1 million parameters", VDVAE_CIFAR10, 1_100_000),
    ("two-stage-small", "a second VAE over a run of vdvae-small", TWO_STAGE_SMALL, 4_000),
    ("two-stage", "a second VAE over a run of vdvae-svhn or vdvae-celeba64", TWO_STAGE, 350_000),
)
"""Name, description, config, iterations."""
