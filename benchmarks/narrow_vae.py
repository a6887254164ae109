"""A hierarchical VAE of images of 14 x 14 that trains in minutes on one core."""

NARROW = (
    *("--size", "14", "--resolutions", "1", "7", "14", "--layers", "1", "2", "2", "--encoder-blocks", "1", "1", "1"),
    *("--width", "16", "--bottleneck-width", "8", "--latents", "4", "--batch-size", "16", "--dual-step-size", "2e-3"),
)
"""Options of `python -m vdbjax.train vdvae-small`."""
