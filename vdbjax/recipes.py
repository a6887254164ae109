"""The menu of policies: recipe name -> config."""

import dataclasses
from typing import Any, NamedTuple

from vdbjax import limits
from vdbjax.bottleneck import BottleneckConfig
from vdbjax.envs.env import EnvironmentConfig
from vdbjax.image_recipes import IMAGE_RECIPES
from vdbjax.imitation import airl, airl_discriminator, behavioral_cloning, gail, pixel_reward
from vdbjax.imitation.adversarial_step import DiscriminatorConfig
from vdbjax.rl import reinforcement
from vdbjax.rl.ppo import PPOConfig
from vdbjax.rl.trpo import TRPOConfig
from vdbjax.run_config import DemonstrationConfig, RunConfig


class Recipe(NamedTuple):
    """A row of the menu."""

    description: str
    config: RunConfig


def _imitation(name: str, description: str, **changes: Any) -> Recipe:
    config: RunConfig = RunConfig(name, gail.Config(**changes), demonstration=DemonstrationConfig())
    return Recipe(description, config)


MOTION_TASK = EnvironmentConfig(env="mocap/run")

CLIP_TASK = dataclasses.replace(MOTION_TASK, velocities="mean")
"""For recipes that judge by the clip's own states: else these have smoothed velocities, and no character has such."""

MOTION_PPO = PPOConfig(
    learning_rate=2e-4,
    num_epochs=5,
    minibatch_size=1024,
    rollout_length=32,
    discount=0.95,
    hidden_sizes=(256, 128),
    activation="relu",
    initial_std=0.15,
    final_std=0.04,
)
"""For the mocap humanoid: what learnt within minutes on two cores. The paper's networks are 1024-512.

The deviation has to fall: where 0.1 of it is left, the mean action alone walks at another pace than the draws did, and
drifts out of step with the clip."""

MOTION_BOTTLENECK = BottleneckConfig(latent_size=64, mean_scale=0.1, beta_init=0.3, dual_step_size=3e-3)
"""The paper's code has 128 dimensions (section 5.1), before networks that are larger too."""


def _motion_discriminator(**changes: Any) -> DiscriminatorConfig:
    """The phase-functioned discriminator of VDB appendix C, by gradient descent with momentum, as there, though with
    longer steps in a shorter run. Adam's, as long where the slope is small, sharpen the reward until none leads back
    to the clip."""
    common: dict[str, Any] = {
        "inputs": "state",
        "phase": "functioned",
        "activation": "relu",
        "optimizer": "sgd",
        "learning_rate": 3e-4,
        "updates": 8,
        "deviation_floor": 0.05,
    }
    return DiscriminatorConfig(**(common | changes))


PENALISED: dict[str, Any] = {"gradient_penalty": 1.0, "learning_rate": 1e-3}
"""The penalty (VDB appendix B) flattens what the discriminator says, and so bears longer steps."""


def _motion(name: str, description: str, *, bottleneck: BottleneckConfig | None = None, **changes: Any) -> Recipe:
    algorithm = gail.Config(MOTION_PPO, _motion_discriminator(**changes), bottleneck, running_normalizer=True)
    return Recipe(description, RunConfig(name, algorithm, CLIP_TASK, num_envs=128, total_steps=4_000_000))


VIDEO_TASK = EnvironmentConfig(env="video/run")


def _video(name: str, description: str, algorithm: Any) -> Recipe:
    return Recipe(description, RunConfig(name, algorithm, VIDEO_TASK, num_envs=128, total_steps=4_000_000))


def _film_critic(bottleneck: BottleneckConfig | None = None) -> gail.Config:
    """Of pictures, with the phase: VDB appendix C has phase-functioned discriminators in all motion imitation."""
    discriminator = _motion_discriminator(
        inputs="frame", hidden_sizes=(128,), batch_size=128, optimizer="adam", learning_rate=1e-4
    )
    return gail.Config(MOTION_PPO, discriminator, bottleneck, running_normalizer=True)


MAZE_TASK = EnvironmentConfig(env="maze/c")

MAZE_TRPO = TRPOConfig(normalize=False)
"""For mazes, whose observations are metres of the size of 1."""

MAZE_BOTTLENECK = BottleneckConfig(
    latent_size=32, mean_scale=airl_discriminator.START_SCALE, info_constraint=0.5, beta_init=0.005, dual_step_size=1e-5
)
"""Of VAIRL in the C-maze (VDB appendix D; what beta starts from is the authors' code's)."""


def _inverse(name: str, description: str, *, bottleneck: BottleneckConfig | None = None, **changes: Any) -> Recipe:
    """Inverse reinforcement learning in the C-maze, by TRPO with the settings of VDB appendix D. With the bottleneck
    alone the step is annealed: no policy found the way to the goal there by rewards that had gone on learning."""
    algorithm = airl.Config(
        discriminator=airl_discriminator.DiscriminatorConfig(**changes),
        bottleneck=bottleneck,
        trpo=MAZE_TRPO,
        optimizer="trpo",
    )
    demonstration = DemonstrationConfig(trajectories=20, every=1)
    return Recipe(
        description, RunConfig(name, algorithm, MAZE_TASK, demonstration, num_envs=100, total_steps=2_000_000)
    )


def _menu(*recipes: Recipe) -> dict[str, Recipe]:
    return {recipe.config.recipe: recipe for recipe in recipes}


RECIPES = _menu(
    Recipe(
        "PPO on the task's own reward: makes experts", RunConfig("ppo", reinforcement.Config(), total_steps=2_000_000)
    ),
    Recipe(
        "TRPO on the task's own reward",
        RunConfig("trpo", reinforcement.Config(optimizer="trpo"), total_steps=2_000_000),
    ),
    Recipe(
        "behavioural cloning, with a held-out part and early stopping",
        RunConfig("bc", behavioral_cloning.Config(), demonstration=DemonstrationConfig()),
    ),
    _imitation("gail", "GAIL (Ho & Ermon 2016)"),
    _imitation(
        "gail-noise", "GAIL, noise on the discriminator's inputs", discriminator=DiscriminatorConfig(input_noise=0.2)
    ),
    _imitation(
        "gail-noise-z", "GAIL, noise on the last hidden layer", discriminator=DiscriminatorConfig(code_noise=0.2)
    ),
    _imitation(
        "gail-gp", "GAIL, gradient penalty on expert samples", discriminator=DiscriminatorConfig(gradient_penalty=0.1)
    ),
    _imitation(  # its reward is softplus of the critic, as GAIL's: by the critic itself hopper learns to fall
        "wgail",
        "W-GAIL: Wasserstein critic with gradient penalty",
        discriminator=DiscriminatorConfig(loss="wasserstein", gradient_penalty=10.0),
    ),
    _imitation("gail-vr", "GAIL with variance regularisation", discriminator=DiscriminatorConfig(variance_weight=0.01)),
    _imitation("vail", "VAIL: GAIL through the variational bottleneck", bottleneck=BottleneckConfig()),
    _imitation(
        "vail-gp",
        "VAIL with gradient penalty",
        bottleneck=BottleneckConfig(),
        discriminator=DiscriminatorConfig(gradient_penalty=0.1),
    ),
    _imitation(
        "vail-fixed-beta",
        "VAIL with beta held where it starts",
        bottleneck=BottleneckConfig(adaptive=False, beta_init=0.1),
    ),
    _inverse("airl", "AIRL (Fu et al. 2018): a reward that transfers, from demonstrations in a maze"),
    _inverse("airl-gp", "AIRL with gradient penalty", gradient_penalty=0.1),
    _inverse("vairl", "VAIRL: AIRL through the variational bottleneck", bottleneck=MAZE_BOTTLENECK, anneal=True),
    _inverse("vairl-gp", "VAIRL with gradient penalty", bottleneck=MAZE_BOTTLENECK, gradient_penalty=0.1),
    _inverse(
        "vairl-beta0",
        "VAIRL's noisy codes without the constraint: beta held at 0",
        bottleneck=dataclasses.replace(MAZE_BOTTLENECK, beta_init=0.0, adaptive=False),
        anneal=True,
    ),
    Recipe(
        "motion clip tracked by DeepMimic's hand-made reward",
        RunConfig(
            "motion-tracking",
            reinforcement.Config(ppo=dataclasses.replace(MOTION_PPO, num_epochs=3)),
            MOTION_TASK,
            num_envs=128,
            total_steps=3_000_000,
        ),
    ),
    Recipe(
        "motion clip cloned from a tracking policy's actions",
        RunConfig(
            "motion-bc",
            behavioral_cloning.Config(hidden_sizes=(256, 128), activation="relu", initial_std=0.15),
            MOTION_TASK,
            DemonstrationConfig(trajectories=17, every=1),
        ),
    ),
    _motion("motion-merel", "motion clip by GAIL without phase (Merel et al. 2017)", phase="none"),
    _motion("motion-gail", "motion clip by GAIL, phase-functioned discriminator"),
    _motion("motion-gail-noise", "the same, noise on the discriminator's inputs", input_noise=0.2),
    _motion("motion-gail-noise-z", "the same, noise on the last hidden layer", code_noise=0.2),
    _motion("motion-gail-gp", "the same, gradient penalty on the clip's samples", **PENALISED),
    _motion("motion-vail", "motion clip by VAIL", bottleneck=MOTION_BOTTLENECK),
    _motion(
        "motion-vail-gp",
        "motion clip by VAIL with gradient penalty",
        bottleneck=MOTION_BOTTLENECK,
        **PENALISED,
    ),
    _video("video-pixel", "film of a clip by pixel differences", pixel_reward.Config(MOTION_PPO)),
    _video("video-gail", "film of a clip by GAIL: the discriminator sees pictures", _film_critic()),
    _video(
        "video-vail",
        "film of a clip by VAIL: the same through the bottleneck",
        _film_critic(dataclasses.replace(MOTION_BOTTLENECK, dual_step_size=1e-3)),
    ),
)


def find_recipe(name: str) -> RunConfig:
    """The config of a policy's recipe; a model of images has its from `find_image_recipe`.

    Raises ValueError for any other name, with the nearest ones.
    """
    if name in IMAGE_RECIPES:
        raise ValueError(f"recipe {name!r} trains a model of images, which has no policy and no task")
    limits.known("recipe", [*RECIPES, *IMAGE_RECIPES], name)
    return RECIPES[name].config
