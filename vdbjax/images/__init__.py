"""Models of images, adversarial ones and hierarchies of latents, and the networks that judge images."""
