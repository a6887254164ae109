"""The ant of the transfer table and the one with two disabled legs: what differs in the model, and the reward."""

import jax
import jax.numpy as jnp
import numpy as np

from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.envs.locomotion import TASKS, load_model

FRONT = ("hip_1", "ankle_1", "hip_2", "ankle_2")


def test_two_legs_are_half_as_long_and_weak():
    whole, disabled = (load_model(TASKS[name]) for name in ("custom-ant", "disabled-ant"))
    np.testing.assert_array_equal(whole.actuator_gear[:, 0], 30.0)
    for motor in range(8):
        joint = disabled.joint(disabled.actuator_trnid[motor, 0])
        assert disabled.actuator_gear[motor, 0] == (1.0 if joint.name in FRONT else 30.0)
    for name in ("left_leg_geom", "left_ankle_geom", "right_leg_geom", "right_ankle_geom"):
        np.testing.assert_allclose(disabled.geom(name).size[1], 0.5 * whole.geom(name).size[1])
    np.testing.assert_allclose(disabled.geom("back_leg_geom").size[1], whole.geom("back_leg_geom").size[1])
    shins = [disabled.joint(name).bodyid[0] for name in ("ankle_1", "ankle_2", "ankle_3")]
    np.testing.assert_allclose(np.abs(disabled.body_pos[shins]), [[0.1, 0.1, 0], [0.1, 0.1, 0], [0.2, 0.2, 0]])


def test_both_are_seen_alike_and_last_500_steps():
    tasks = [make_environment(EnvironmentConfig(name, "c")) for name in ("custom-ant", "disabled-ant")]
    assert {(task.observation_size, task.action_size, task.episode_length) for task in tasks} == {(27, 8, 500)}
    for task in tasks:
        state = task.reset(jax.random.key(0), 2)
        _, step = task.step(state, jnp.ones((2, 8)), jax.random.key(1))
        assert np.all(np.isfinite(step.reward))
        assert not np.any(step.terminated)
