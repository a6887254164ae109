"""Models of images, and the networks that judge them."""
