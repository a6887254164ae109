"""The menu of image models: recipe name -> config."""

from typing import NamedTuple

from vdbjax.flow_recipes import FLOWS
from vdbjax.gan_recipes import GANS
from vdbjax.image_run_config import ImageRunConfig
from vdbjax.images import classifier
from vdbjax.vae_recipes import VAES


class ImageRecipe(NamedTuple):
    """A row of the menu."""

    description: str
    config: ImageRunConfig


CLASSIFIERS = (
    ("cifar-features", "a small classifier, for a Fréchet distance on its features", classifier.Config(), 3_000),
)

IMAGE_RECIPES = {
    name: ImageRecipe(description, ImageRunConfig(name, config, iterations=iterations))
    for name, description, config, iterations in (*FLOWS, *GANS, *VAES, *CLASSIFIERS)
}


def find_image_recipe(name: str) -> ImageRunConfig:
    """The config of an image model's recipe. Raises ValueError for any other name."""
    if name in IMAGE_RECIPES:
        return IMAGE_RECIPES[name].config
    raise ValueError(f"recipe {name!r} trains no model of images; these do: {', '.join(IMAGE_RECIPES)}")
