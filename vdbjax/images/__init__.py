"""Models of images that are trained against a critic or by a bound."""
