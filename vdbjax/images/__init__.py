"""Models of images: adversarial ones, and hierarchies of latents."""
