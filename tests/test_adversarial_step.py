"""The one discriminator step against hand arithmetic on a linear critic, and on two Gaussians."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.bottleneck import BottleneckConfig
from vdbjax.imitation.adversarial_step import DiscriminatorConfig, Judged, Trajectories, make_discriminator
from vdbjax.types import Demonstrations

GAMMA = 0.9
TIME, NUM_ENVS = 5, 3
LINEAR = DiscriminatorConfig(inputs="state", hidden_sizes=(), batch_size=16)
WEIGHTS, BIAS = np.array([0.7, -1.2]), 0.3
REAL, FAKE = np.array([1.5, -0.5]), np.array([-0.4, 0.9])


def random_demonstrations(rows=50):
    """Every column of its own mean and deviation."""
    generator = np.random.default_rng(0)
    columns = lambda size, at: jnp.float32(at + (1 + at) * generator.standard_normal((rows, size)))  # noqa: E731
    flags = jnp.arange(rows) % 10 == 9
    return Demonstrations(columns(2, 3.0), columns(1, 0.5), columns(2, 7.0), jnp.zeros(rows), flags, ~flags)


DEMONSTRATIONS = random_demonstrations()


@functools.cache
def make(config=LINEAR, bottleneck=None, *, updates=1):
    """A discriminator that judges two numbers of the state."""
    made = make_discriminator(config, bottleneck, DEMONSTRATIONS, updates=updates, discount=GAMMA)
    return made._replace(init=jax.jit(made.init), step=jax.jit(made.step))


def expert_rows(features, rows=8, terminated=False):
    """The same row many times: whichever are drawn, the loss is known."""
    return Judged(jnp.tile(jnp.float32(features), (rows, 1)), jnp.full(rows, terminated))


def policy_rows(features, *, value=0.0, next_value=0.0, terminated=False, truncated=False, scale=1.0):
    """A rollout of one row, over and over."""
    shape = (TIME, NUM_ENVS)
    return Trajectories(
        Judged(jnp.tile(jnp.float32(features), (*shape, 1)), jnp.full(shape, terminated)),
        jnp.full(shape, truncated),
        jnp.full(shape, value),
        jnp.full(shape, next_value),
        jnp.float32(scale),
    )


def with_head(state, weights=WEIGHTS, bias=BIAS):
    """The linear critic w x + b."""
    head = {"kernel": jnp.float32(weights)[:, None], "bias": jnp.float32([bias])}
    return state._replace(params={"params": {"head": head}})


def step_linear(config, expert, policy, *, key=1, weights=WEIGHTS, bias=BIAS):
    """One step from the known critic: state and metrics."""
    discriminator = make(config)
    state = with_head(discriminator.init(jax.random.key(0)), weights, bias)
    return discriminator.step(state, expert, policy, jax.random.key(key))


def sigmoid(logit):
    """1 / (1 + exp(-logit)), in float64."""
    return 1.0 / (1.0 + np.exp(-np.float64(logit)))


REAL_LOGIT, FAKE_LOGIT = WEIGHTS @ REAL + BIAS, WEIGHTS @ FAKE + BIAS  # 1.95 and -1.06


def test_loss_and_verdicts_of_a_linear_critic_by_hand():
    _, metrics = step_linear(LINEAR, expert_rows(REAL), policy_rows(FAKE))
    d_real, d_fake = sigmoid(REAL_LOGIT), sigmoid(FAKE_LOGIT)
    assert float(metrics["discriminator/loss"]) == pytest.approx(-np.log(d_real) - np.log(1 - d_fake), rel=1e-5)
    entropy = [-d * np.log(d) - (1 - d) * np.log(1 - d) for d in (d_real, d_fake)]
    assert float(metrics["discriminator/entropy_nats"]) == pytest.approx(np.mean(entropy), rel=1e-5)
    assert float(metrics["discriminator/expert_accuracy"]) == float(metrics["discriminator/policy_accuracy"]) == 1.0
    slope = np.append(-(1 - d_real) * REAL + d_fake * FAKE, -(1 - d_real) + d_fake)
    assert float(metrics["discriminator/gradient_norm"]) == pytest.approx(np.linalg.norm(slope), rel=1e-5)


def test_wasserstein_loss_of_a_linear_critic_by_hand():
    config = dataclasses.replace(LINEAR, loss="wasserstein", gradient_penalty=2.0)
    _, metrics = step_linear(config, expert_rows(REAL), policy_rows(FAKE))
    assert "discriminator/policy_accuracy" not in metrics  # its zero means nothing
    assert float(metrics["discriminator/loss"]) == pytest.approx(FAKE_LOGIT - REAL_LOGIT, rel=1e-5)
    norm = np.linalg.norm(WEIGHTS)
    assert float(metrics["discriminator/gradient_penalty"]) == pytest.approx((norm - 1) ** 2, rel=1e-4)
    slope = np.append(FAKE - REAL + 2.0 * 2.0 * (norm - 1) * WEIGHTS / norm, 0.0)
    assert float(metrics["discriminator/gradient_norm"]) == pytest.approx(np.linalg.norm(slope), rel=1e-4)


def test_r1_of_a_linear_critic_by_hand():
    config = dataclasses.replace(LINEAR, gradient_penalty=3.0)
    _, metrics = step_linear(config, expert_rows(REAL), policy_rows(FAKE))
    assert float(metrics["discriminator/gradient_penalty"]) == pytest.approx(0.5 * WEIGHTS @ WEIGHTS, rel=1e-5)
    d_real, d_fake = sigmoid(REAL_LOGIT), sigmoid(FAKE_LOGIT)
    slope = np.append(-(1 - d_real) * REAL + d_fake * FAKE + 3.0 * WEIGHTS, -(1 - d_real) + d_fake)
    assert float(metrics["discriminator/gradient_norm"]) == pytest.approx(np.linalg.norm(slope), rel=1e-4)


def test_gradient_descent_with_momentum_by_hand():
    rate = 0.1
    discriminator = make(dataclasses.replace(LINEAR, optimizer="sgd", learning_rate=rate), updates=2)
    start = with_head(discriminator.init(jax.random.key(0)))
    state, _ = discriminator.step(start, expert_rows(REAL), policy_rows(FAKE), jax.random.key(1))
    known, velocity = np.append(WEIGHTS, BIAS), np.zeros(3)
    real, fake = np.append(REAL, 1.0), np.append(FAKE, 1.0)
    for _ in range(2):
        slope = -(1 - sigmoid(known @ real)) * real + sigmoid(known @ fake) * fake
        velocity = 0.9 * velocity + slope
        known = known - rate * velocity
    head = state.params["params"]["head"]
    np.testing.assert_allclose(np.append(head["kernel"][:, 0], head["bias"]), known, rtol=1e-5)


def test_a_step_raises_the_expert_above_the_policy():
    state, _ = step_linear(LINEAR, expert_rows(REAL), policy_rows(FAKE))
    head = state.params["params"]["head"]
    gap = (REAL - FAKE) @ np.asarray(head["kernel"])[:, 0]
    assert gap > (REAL - FAKE) @ WEIGHTS


FORMS = {"-log(1-D)": lambda d: -np.log(1 - d), "log D": np.log, "logit": lambda d: np.log(d) - np.log(1 - d)}


@pytest.mark.parametrize("form", FORMS)
def test_the_reward_is_its_form_of_the_verdict(form):
    discriminator = make(dataclasses.replace(LINEAR, reward=form))
    state = with_head(discriminator.init(jax.random.key(0)))
    found = discriminator.reward(state.params, Judged(jnp.float32([REAL, FAKE]), jnp.array([False, True])))
    np.testing.assert_allclose(found, FORMS[form](sigmoid([REAL_LOGIT, FAKE_LOGIT])), rtol=1e-5)


NOISES = {"input_noise": {"input_noise": 0.5}, "code_noise": {"code_noise": 0.5}}


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_in_the_training_and_not_in_the_reward(noise):
    config = dataclasses.replace(LINEAR, **NOISES[noise])
    expert, policy = expert_rows(REAL), policy_rows(FAKE)
    losses = [float(step_linear(config, expert, policy, key=key)[1]["discriminator/loss"]) for key in (1, 2)]
    quiet = [float(step_linear(LINEAR, expert, policy, key=key)[1]["discriminator/loss"]) for key in (1, 2)]
    assert quiet[0] == pytest.approx(quiet[1], rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    state = with_head(make(config).init(jax.random.key(0)))
    rewards = [make(made).reward(state.params, policy.judged) for made in (config, LINEAR)]
    np.testing.assert_array_equal(*rewards)


def test_the_bottlenecks_reward_is_that_of_the_mean_code():
    discriminator = make(dataclasses.replace(LINEAR, hidden_sizes=(8,)), BottleneckConfig(latent_size=3))
    state = discriminator.init(jax.random.key(0))
    encoder, head = state.params["params"]["encoder"], state.params["params"]["head"]
    hidden = np.tanh(REAL @ np.asarray(encoder["Trunk_0"]["Dense_0"]["kernel"]))
    logit = hidden @ np.asarray(encoder["Dense_0"]["kernel"]) @ np.asarray(head["kernel"])[:, 0]
    found = discriminator.reward(state.params, expert_rows(REAL))
    np.testing.assert_allclose(found, np.log1p(np.exp(logit)), rtol=1e-4)


# Inputs, and the columns of the demonstrations that they are made of.
INPUTS = {
    "state": ("observation",),
    "state-action": ("observation", "action"),
    "transition": ("observation", "next_observation"),
}


@pytest.mark.parametrize("inputs", INPUTS)
def test_what_is_judged_is_normalised_by_the_demonstrations(inputs):
    discriminator = make(dataclasses.replace(LINEAR, inputs=inputs))
    flags = jnp.array([[True, False]])
    shown = Demonstrations(*(3.0 * field[:2] + 1.0 for field in DEMONSTRATIONS[:3]), *[None] * 3)
    rows = [jnp.asarray(getattr(shown, name))[None] for name in ("observation", "action", "next_observation")]
    judged = discriminator.judge(*rows, flags)
    together = lambda of: np.concatenate([np.float64(getattr(of, name)) for name in INPUTS[inputs]], axis=-1)  # noqa: E731
    seen = together(DEMONSTRATIONS)
    expected = np.clip((together(shown) - seen.mean(axis=0)) / seen.std(axis=0), -10, 10)
    np.testing.assert_allclose(judged.features[0], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(judged.terminated, flags)


def judged_at(config, turns):
    """Logits of an untrained discriminator on the same states (and successors) at a phase given in cycles."""
    angle = 2 * np.pi * turns
    phase = jnp.tile(jnp.array([np.cos(angle), np.sin(angle)], jnp.float32), (50, 1))
    with_phase = lambda seen, at: jnp.concatenate([seen, at], axis=-1)  # noqa: E731
    ring = 2 * np.pi * jnp.arange(50) / 50  # demonstrations of all phases
    around = jnp.stack([jnp.cos(ring), jnp.sin(ring)], axis=-1)
    observation, action, later = DEMONSTRATIONS[:3]
    shown = DEMONSTRATIONS._replace(
        observation=with_phase(observation, around), next_observation=with_phase(later, around)
    )
    made = make_discriminator(config, None, shown, updates=1, discount=GAMMA, phase_size=2)
    judged = made.judge(with_phase(observation, phase), action, with_phase(later, phase), DEMONSTRATIONS.terminated)
    return np.asarray(made.reward(made.init(jax.random.key(0)).params, judged))


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("phase", "sees_it"), [("none", False), ("input", True), ("functioned", True)])
def test_the_phase_is_seen_or_hidden(phase, sees_it, inputs):
    """The same states at two phases: rewards, and so the logits, differ where the discriminator knows the phase."""
    config = DiscriminatorConfig(inputs=inputs, phase=phase, hidden_sizes=(8,), reward="logit")
    early, late = (judged_at(config, turns) for turns in (0.1, 0.6))
    if sees_it:
        assert np.mean(np.abs(early - late) > 1e-3) > 0.9
    else:
        np.testing.assert_array_equal(early, late)


ABSORBING = dataclasses.replace(LINEAR, absorbing=True)


@pytest.mark.parametrize("form", FORMS)
def test_absorbing_pays_a_termination_as_if_the_episode_stayed_there(form):
    discriminator = make(dataclasses.replace(ABSORBING, reward=form))
    weights = np.append(WEIGHTS, -0.4)
    state = with_head(discriminator.init(jax.random.key(0)), weights)
    rows = jnp.float32([[*REAL, 0.0]] * 2)
    ended, went_on = np.float64(discriminator.reward(state.params, Judged(rows, jnp.array([True, False]))))
    after_the_end = FORMS[form](sigmoid(-0.4 + BIAS))
    assert went_on == pytest.approx(FORMS[form](sigmoid(REAL_LOGIT)), rel=1e-5)
    assert ended - went_on == pytest.approx(GAMMA * after_the_end / (1 - GAMMA), rel=1e-5)


def test_absorbing_judges_one_number_more_which_is_zero_before_the_end():
    columns = DEMONSTRATIONS.observation, DEMONSTRATIONS.action, DEMONSTRATIONS.next_observation
    plain = make(LINEAR).judge(*columns, DEMONSTRATIONS.terminated).features
    judged = make(ABSORBING).judge(*columns, DEMONSTRATIONS.terminated).features
    np.testing.assert_array_equal(judged, np.pad(plain, ((0, 0), (0, 1))))


@pytest.mark.parametrize("terminated", [False, True])
def test_absorbing_shows_half_of_the_terminations_as_the_state_after_the_end(terminated):
    """The critic takes the row for the expert's and the state after the end for the policy's."""
    config = dataclasses.replace(ABSORBING, batch_size=4000)
    expert = expert_rows([*REAL, 0.0], terminated=terminated)
    _, metrics = step_linear(config, expert, policy_rows([*FAKE, 0.0]), weights=[*WEIGHTS, -5.0])
    assert float(metrics["discriminator/expert_accuracy"]) == pytest.approx(0.5 if terminated else 1.0, abs=0.03)
    assert float(metrics["discriminator/policy_accuracy"]) == 1.0


def test_absorbing_for_ever_is_refused_without_a_discount():
    with pytest.raises(ValueError, match=r"absorbing.*discount \(1.0\)"):
        make_discriminator(ABSORBING, None, DEMONSTRATIONS, updates=1, discount=1.0)


def test_points_between_two_samples_have_no_phase() -> None:
    with pytest.raises(ValueError, match="judges points between two samples, which have no one phase"):
        DiscriminatorConfig(loss="wasserstein", gradient_penalty=10.0, phase="functioned")


BOTTLENECK = BottleneckConfig(latent_size=2, info_constraint=0.5, beta_init=0.2, dual_step_size=0.01)


def step_bottleneck(bottleneck, constraint, *, updates=1):
    """(beta before, beta after, KL by hand in nats) of one step of an encoder without hidden layers."""
    bottleneck = dataclasses.replace(bottleneck, info_constraint=constraint)
    discriminator = make(LINEAR, bottleneck, updates=updates)
    state = discriminator.init(jax.random.key(0))
    encoder = jax.tree.map(np.float64, state.params["params"]["encoder"])
    kl = []
    for row in (REAL, FAKE):
        mean, log_variance = (
            row @ encoder[layer]["kernel"] + encoder[layer]["bias"] for layer in ("Dense_0", "Dense_1")
        )
        kl.append(0.5 * np.sum(mean**2 + np.exp(log_variance) - 1 - log_variance))
    after, metrics = discriminator.step(state, expert_rows(REAL), policy_rows(FAKE), jax.random.key(1))
    assert float(metrics["bottleneck/beta"]) == float(after.dual.beta)
    return float(state.dual.beta), float(after.dual.beta), np.mean(kl), float(metrics["bottleneck/kl_nats"])


@pytest.mark.parametrize("constraint", [0.01, 5.0])
def test_beta_moves_by_the_violation(constraint):
    before, after, by_hand, kl = step_bottleneck(BOTTLENECK, constraint)
    assert kl == pytest.approx(by_hand, rel=1e-4)
    assert before == pytest.approx(0.2)
    assert after == pytest.approx(0.2 + 0.01 * (by_hand - constraint), rel=1e-4)
    assert (after > before) == (by_hand > constraint)


def test_beta_stops_at_zero():
    _, after, _, _ = step_bottleneck(dataclasses.replace(BOTTLENECK, dual_step_size=10.0), 5.0)
    assert after == 0.0


def test_beta_is_held_where_it_starts_if_not_adaptive():
    before, after, _, kl = step_bottleneck(dataclasses.replace(BOTTLENECK, adaptive=False), 0.01, updates=5)
    assert after == before == pytest.approx(0.2)
    assert kl > 0.0


@pytest.fixture(scope="module")
def two_gaussians():
    """Budget in nats -> metrics of a discriminator of two Gaussians 2 apart, after its warm-up."""

    def run(budget):
        bottleneck = BottleneckConfig(latent_size=4, info_constraint=budget, beta_init=0.1, dual_step_size=0.02)
        config = dataclasses.replace(LINEAR, hidden_sizes=(16,), batch_size=64, learning_rate=3e-3)
        step = make(config, bottleneck, updates=1000).step
        noise = jax.random.normal(jax.random.key(1), (2, 600, 2))
        expert = Judged(noise[0] + 1.0, jnp.zeros(600, bool))
        rollout = (noise[1] - 1.0).reshape(200, 3, 2)
        zeros = jnp.zeros((200, 3))
        policy = Trajectories(Judged(rollout, zeros > 0), zeros > 0, zeros, zeros, jnp.float32(1.0))
        state = make(config, bottleneck).init(jax.random.key(0))
        for key in jax.random.split(jax.random.key(2), 5):
            state, metrics = step(state, expert, policy, key)
        return jax.tree.map(float, metrics)

    return {budget: run(budget) for budget in (0.05, 0.5)}


@pytest.mark.parametrize("budget", [0.05, 0.5])
def test_the_information_is_held_at_its_budget(two_gaussians, budget):
    assert two_gaussians[budget]["bottleneck/kl_nats"] == pytest.approx(budget, rel=0.1)


def test_a_narrower_bottleneck_knows_the_policy_less_well(two_gaussians):
    tight, wide = two_gaussians[0.05], two_gaussians[0.5]
    assert tight["discriminator/policy_accuracy"] < wide["discriminator/policy_accuracy"] - 0.05
    assert tight["discriminator/entropy_nats"] > wide["discriminator/entropy_nats"] + 0.05
    assert tight["bottleneck/beta"] > wide["bottleneck/beta"]


VARIANCE = dataclasses.replace(LINEAR, variance_weight=0.7)


def returns_by_loop(weights, bias, policy):
    """Discounted returns of the rewards softplus(w x + b) / scale, in float64."""
    logits = np.float64(policy.judged.features) @ weights + bias
    reward = np.log1p(np.exp(logits)) / float(policy.reward_scale)
    terminated, truncated = np.asarray(policy.judged.terminated), np.asarray(policy.truncated)
    following = np.float64(policy.next_value)
    returns = np.zeros_like(reward)
    for env in range(NUM_ENVS):
        later = following[-1, env]
        for t in reversed(range(TIME)):
            later = 0.0 if terminated[t, env] else following[t, env] if truncated[t, env] else later
            later = returns[t, env] = reward[t, env] + GAMMA * later
    return returns


def test_the_variance_term_of_a_linear_critic_by_finite_differences():
    generator = np.random.default_rng(3)
    policy = policy_rows(FAKE, value=0.4, next_value=0.9, scale=2.0)
    flags = np.zeros((2, TIME, NUM_ENVS), bool)
    flags[0, 1, 0] = flags[1, 3, 1] = flags[0, -1, 2] = True
    policy = policy._replace(
        judged=policy.judged._replace(terminated=jnp.asarray(flags[0])),
        truncated=jnp.asarray(flags[1]),
        value=jnp.float32(generator.standard_normal((TIME, NUM_ENVS))),
    )

    def objective(weights_and_bias):
        *weights, bias = weights_and_bias
        loss = -np.log(sigmoid(weights @ REAL + bias)) - np.log(1 - sigmoid(weights @ FAKE + bias))
        gap = returns_by_loop(np.array(weights), bias, policy) - np.float64(policy.value)
        return loss - 0.7 * np.mean(gap**2)

    at, width = np.append(WEIGHTS, BIAS), 1e-5
    slope = [(objective(at + width * e) - objective(at - width * e)) / (2 * width) for e in np.eye(3)]
    _, metrics = step_linear(VARIANCE, expert_rows(REAL), policy)
    assert float(metrics["discriminator/gradient_norm"]) == pytest.approx(np.linalg.norm(slope), rel=1e-3)
    _, plain = step_linear(LINEAR, expert_rows(REAL), policy)
    assert float(plain["discriminator/gradient_norm"]) != pytest.approx(np.linalg.norm(slope), rel=0.05)


def test_the_variance_term_teaches_the_discriminator_alone():
    """No gradient flows into the policy's values, and rewards are made as without it."""

    def loss_of_the_next_critic(values, config):
        policy = policy_rows(FAKE)._replace(value=values)
        state, _ = step_linear(config, expert_rows(REAL), policy)
        return jnp.sum(state.params["params"]["head"]["kernel"])

    values = jnp.linspace(-1.0, 1.0, TIME * NUM_ENVS).reshape(TIME, NUM_ENVS)
    np.testing.assert_array_equal(jax.grad(loss_of_the_next_critic)(values, VARIANCE), 0.0)
    state = with_head(make(VARIANCE).init(jax.random.key(0)))
    rows = policy_rows(FAKE).judged
    np.testing.assert_array_equal(make(VARIANCE).reward(state.params, rows), make(LINEAR).reward(state.params, rows))


REFUSED = {"updates": 0, "batch_size": 0, "learning_rate": -1.0, "gradient_penalty": -0.1, "input_noise": float("nan")}


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_cannot_work_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} \({REFUSED[name]}\)"):
        DiscriminatorConfig(**{name: REFUSED[name]})
