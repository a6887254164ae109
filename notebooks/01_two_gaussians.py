# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two Gaussians through a narrow channel
#
# A discriminator that tells two distant Gaussians apart soon knows too much: its verdict is 0 or 1 everywhere, and a
# generator or a policy that climbs on it finds flat ground. The *variational discriminator bottleneck* gives it a
# budget. An encoder turns each sample $x$ into a noisy code $z \sim E(z|x) = N(\mu(x), \sigma(x)^2)$, a linear head
# judges the code, and the code may carry at most $I_c$ nats about $x$:
#
# $$\min_{D, E} \max_{\beta \ge 0} \; E_{\rm real}[-\log D(z)] + E_{\rm fake}[-\log(1 - D(z))]
#   + \beta \left( E[{\rm KL}(E(z|x) \,\|\, N(0, I))] - I_c \right)$$
#
# This notebook redraws Figure 2 (right) of Peng et al., *Variational Discriminator Bottleneck* (ICLR 2019), and the
# bound of its appendix A. On a laptop's CPU it takes about half a minute.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("vdbjax") is None:  # on Colab, or in a fresh clone
    source = ".." if Path("../pyproject.toml").exists() else "vdbjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from vdbjax.adversarial.losses import accuracy, logistic_loss
from vdbjax.bottleneck import (
    BottleneckConfig,
    DualState,
    dual_update,
    kl_to_standard_normal,
    lagrangian,
    log_likelihood_bound,
    mixture_kl,
    sample_code,
)

STEPS = 20 if os.environ.get("VDBJAX_FAST") else 3000
BATCH = 256

# %% [markdown]
# ## The data and the discriminator
#
# Real samples lie around $(1, 1)$, fake ones around $(-1, -1)$, both with a standard deviation of 0.5: they hardly
# touch.


# %%
def draw(key):
    """Real and fake samples, each [BATCH, 2]."""
    noise = 0.5 * jax.random.normal(key, (2, BATCH, 2))
    return 1.0 + noise[0], -1.0 + noise[1]


class Discriminator(nn.Module):
    """A stochastic encoder x -> (mean, std) and a linear head z -> logit. A high logit means real."""

    latent_size: int

    def setup(self):
        self.hidden = [nn.Dense(128), nn.Dense(128)]
        self.mean = nn.Dense(self.latent_size)
        self.log_std = nn.Dense(self.latent_size)
        self.head = nn.Dense(1)

    def encode(self, x):
        for layer in self.hidden:
            x = nn.tanh(layer(x))
        return self.mean(x), jnp.exp(self.log_std(x))

    def judge(self, z):
        return self.head(z)[..., 0]

    def __call__(self, x):
        """The verdict on the mean code: what a generator climbs on."""
        return self.judge(self.encode(x)[0])


# %% [markdown]
# ## Training
#
# One Adam step on encoder and head, then one dual step on $\beta$: it rises while the code costs more than $I_c$ and
# falls while there is slack. Without a bottleneck the head sees the mean code, and nothing is charged.

# %%
network = Discriminator(latent_size=8)
optimizer = optax.adam(1e-3)


def judge_code(params, key, x, bottleneck):
    """Logits of drawn codes, and the KL of each in nats."""
    mean, std = network.apply(params, x, method="encode")
    code = mean if bottleneck is None else sample_code(key, mean, std)
    return network.apply(params, code, method="judge"), kl_to_standard_normal(mean, std)


def critic_loss(params, key, beta, bottleneck):
    """The Lagrangian, and the mean KL in nats."""
    data_key, real_key, fake_key = jax.random.split(key, 3)
    real, fake = draw(data_key)
    real_logits, real_kl = judge_code(params, real_key, real, bottleneck)
    fake_logits, fake_kl = judge_code(params, fake_key, fake, bottleneck)
    loss, mean_kl = logistic_loss(real_logits, fake_logits), mixture_kl(real_kl, fake_kl)
    if bottleneck is not None:
        loss = lagrangian(loss, mean_kl, beta, constraint=bottleneck.info_constraint)
    return loss, mean_kl


def train(key, bottleneck):
    """Trained parameters, and the KL (nats) and beta of each step."""

    def step(carry, step_key):
        params, moments, dual = carry
        (_, mean_kl), gradient = jax.value_and_grad(critic_loss, has_aux=True)(params, step_key, dual.beta, bottleneck)
        updates, moments = optimizer.update(gradient, moments)
        if bottleneck is not None:
            budget, step_size = bottleneck.info_constraint, bottleneck.dual_step_size
            dual = dual_update(dual, mean_kl, constraint=budget, step_size=step_size)
        return (optax.apply_updates(params, updates), moments, dual), (mean_kl, dual.beta)

    init_key, train_key = jax.random.split(key)
    params = network.init(init_key, jnp.zeros((1, 2)))
    dual = DualState(jnp.float32(0.0 if bottleneck is None else bottleneck.beta_init))
    start = (params, optimizer.init(params), dual)
    (params, _, _), history = jax.lax.scan(step, start, jax.random.split(train_key, STEPS))
    return params, history


# %%
settings = {"no bottleneck": None}
for budget in (0.5, 0.2, 0.1, 0.05):  # nats
    settings[f"$I_c$ = {budget} nats"] = BottleneckConfig(
        latent_size=8, info_constraint=budget, beta_init=1.0, dual_step_size=1e-2
    )
runs = {name: jax.jit(train, static_argnums=1)(jax.random.key(0), setting) for name, setting in settings.items()}

# %% [markdown]
# The budget caps what the head can know. Codes $N(\pm m, \sigma^2)$ of two equal classes are told apart with accuracy
# $\Phi(m / \sigma)$; among those whose KL is $I_c$ it is largest at $\sigma^2 = e^{-2 I_c}$, where it is
# $\Phi(\sqrt{e^{2 I_c} - 1})$. At the mean code, which is where a generator or a policy is paid, the sign is right
# almost always; only the confidence is gone.

# %%
real, fake = draw(jax.random.key(1))
for name, (params, (kl, beta)) in runs.items():
    keys = jax.random.split(jax.random.key(2))
    samples = [jnp.tile(x, (50, 1)) for x in (real, fake)]
    drawn = [judge_code(params, key, x, settings[name])[0] for key, x in zip(keys, samples, strict=True)]
    mean = [network.apply(params, x) for x in (real, fake)]
    right, right_at_mean = np.mean(accuracy(*drawn)), np.mean(accuracy(*mean))
    report = f"{name.replace('$', ''):<15} accuracy {right:.3f} (at the mean code {right_at_mean:.3f})"
    if (setting := settings[name]) is not None:
        best = jax.scipy.stats.norm.cdf(np.sqrt(np.expm1(2 * setting.info_constraint)))
        report += f", best for the budget {best:.3f}; KL {np.mean(kl[-100:]):.3f} nats, beta {beta[-1]:.2f}"
    print(report)

# %% [markdown]
# ## Decision boundaries
#
# $D(\mu(x))$ over the plane. Without a bottleneck the boundary is a cliff between two certain plateaus. As the budget
# shrinks the cliff becomes a low step: the line $D = 1/2$ stays where it belongs, and the verdict on a clear fake stays
# far from 0.

# %%
axis = np.linspace(-3.0, 3.0, 121)
plane = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1), jnp.float32)

figure, axes = plt.subplots(1, len(runs), figsize=(15, 3.4), sharey=True, layout="constrained")
for ax, (name, (params, _)) in zip(axes, runs.items(), strict=True):
    probability = jax.nn.sigmoid(network.apply(params, plane))
    filled = ax.contourf(axis, axis, probability, levels=np.linspace(0, 1, 21), cmap="RdBu", alpha=0.9)
    ax.contour(axis, axis, probability, levels=[0.5], colors="black", linewidths=1.5)
    ax.scatter(*real[:100].T, s=6, color="navy", label="real")
    ax.scatter(*fake[:100].T, s=6, color="darkred", label="fake")
    ax.set(title=name, aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
axes[0].legend(loc="lower right", fontsize=8)
figure.colorbar(filled, ax=axes, label="$D(\\mu(x))$", ticks=[0, 0.25, 0.5, 0.75, 1], pad=0.01)
plt.show()

# %% [markdown]
# ## What is left to climb
#
# Along the diagonal from fake to real (their means are dotted): the verdict, and its slope, positive where it leads
# towards the real samples. By the chain rule the slope is $D (1 - D)$ times the slope of the logit. Without a
# bottleneck the first factor vanishes on both sides of the boundary; under a tight budget it is near 1/4 everywhere,
# and at the boundary nothing is steep any more.
#
# What the budget does *not* do is turn the step into a ramp. The best code depends on $x$ through
# $p({\rm real} \mid x)$ alone, and that is a step for Gaussians so far apart. On the plateaus the slopes that remain
# are whatever the network happens to have there: often ten or a hundred times larger than without the bottleneck, but
# here mostly of the wrong sign. The gain is at the contact of the two clouds, where a tight budget leaves no cliff. (In
# adversarial training the fake samples move, and the plateaus with them.)
#
# On the right, the dual variable at work: the KL comes down to its budget, with one swing below it where the budget is
# tightest.

# %%
line = jnp.linspace(-2.5, 2.5, 201)
colors = ["black", *plt.cm.viridis(np.linspace(0.1, 0.85, len(runs) - 1))]
figure, (height, slope, cost) = plt.subplots(1, 3, figsize=(15, 3.6), layout="constrained")
for color, (name, (params, (kl, _))) in zip(colors, runs.items(), strict=True):

    def probability_at(t, params=params):
        return jax.nn.sigmoid(network.apply(params, jnp.full((1, 2), t))[0])

    height.plot(line, jax.vmap(probability_at)(line), color=color, label=name)
    slope.plot(line, jax.vmap(jax.grad(probability_at))(line), color=color)
    if (setting := settings[name]) is not None:
        cost.semilogy(kl, color=color, linewidth=0.6)
        cost.axhline(setting.info_constraint, color=color, linestyle="--")
for ax in (height, slope):
    ax.axvline(-1.0, color="darkred", linestyle=":")
    ax.axvline(1.0, color="navy", linestyle=":")
    ax.set(xlabel="$t$, at $x = (t, t)$")
height.legend(fontsize=8)
height.set(title="$D(\\mu(x))$", ylim=(-0.03, 1.03))
slope.set(title="slope of $D(\\mu(x))$ along the line", ylim=(-0.1, 10))
slope.set_yscale("symlog", linthresh=1e-3)
cost.set(title="mean KL in nats, and its budget (dashed)", xlabel="step", ylim=(0.01, 3))
plt.show()

# %% [markdown]
# ## The bound
#
# Theorem A.1: if the KL stays within $I_c$ for *every* input, and the encoder has one $\sigma$ for all, then the code's
# density at the mean of any other input's code is at least
#
# $$C(I_c) = \exp\left(-4 I_c \, e^{2 I_c / K + 1} - \tfrac{K}{2} \log(4 I_c / K + 2) - \tfrac{K}{2} \log 2\pi\right)$$
#
# for a code of $K$ dimensions. It falls with $I_c$, and tends to $(4\pi)^{-K/2} > 0$ as $I_c \to 0$: the coefficients
# of the generator's gradient cannot vanish, however far apart real and fake samples lie.

# %%
budget_axis = jnp.linspace(0.0, 1.0, 201)
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for latent_size in (1, 2, 8, 32):
    (curve,) = ax.plot(budget_axis, log_likelihood_bound(budget_axis, latent_size), label=f"K = {latent_size}")
    ax.plot(0.0, -0.5 * latent_size * np.log(4 * np.pi), "o", color=curve.get_color(), clip_on=False)
ax.set(xlabel="$I_c$ in nats", ylabel="$\\log C(I_c)$", title="Least log-density (dots: the limit at $I_c = 0$)")
ax.legend()
plt.show()
