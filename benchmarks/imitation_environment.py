"""What an environment with the `imitation` library 1.0.1 needs, and what runs there."""

from pathlib import Path

SCRIPT = Path(__file__).parent / "imitation_gail.py"
NEWER = "stable-baselines3==2.9.2 gymnasium[mujoco]==1.4.0 mujoco==3.17.0 tensorboard==2.21.0 datasets==5.2.0"
REQUIREMENTS = (
    (*NEWER.split(), "scikit-learn", "tqdm", "rich", "wasabi"),
    # Its own pins are of releases that do not go with this Gymnasium and MuJoCo; it runs with the newer ones above.
    ("--no-deps", "imitation==1.0.1", "seals==0.2.1", "huggingface-sb3==3.0"),
)
