"""Which metrics share a panel, and how each is drawn."""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np


class Series(NamedTuple):
    """One curve: what it shows, and how. Without a `line` it is drawn as points."""

    metrics: tuple[str, ...]
    label: str = ""
    line: Literal["-", "--", ":", ""] = "-"
    marker: str = ""
    value: Callable[..., Any] = lambda metric: metric  # of the metrics, in order
    band: bool = True


class Panel(NamedTuple):
    """Curves that share a y-axis, with levels (height, name) to hold them against."""

    title: str
    y_label: str
    series: tuple[Series, ...]
    levels: tuple[tuple[float, str], ...] = ()
    log: bool = False  # where all values are positive
    y_range: tuple[float, float] | None = None


PANELS = (
    Panel(
        "Code length of images",
        "bits/dim",
        (
            Series(("flow/bits_per_dim",), "training batches"),
            Series(("vae/bits_per_dim",), "training batches"),
            Series(("eval/bits_per_dim",), "validation, averaged parameters", "--", "o"),
        ),
    ),
    Panel(
        "Accuracy of the classifier",
        "share of images",
        (
            Series(("classifier/accuracy",), "training batches"),
            Series(("eval/accuracy",), "validation, averaged parameters", "--", "o"),
        ),
    ),
    Panel(
        "Distortion",
        "squared error of an image",
        (
            Series(("vae/distortion",), "training batches"),
            Series(("eval/distortion",), "validation, averaged parameters", "--", "o"),
        ),
        log=True,
    ),
    Panel(
        "Rate",
        "KL of the latents (nats an image)",
        (
            Series(("vae/rate_nats",), "training batches"),
            Series(("eval/rate_nats",), "validation, averaged parameters", "--", "o"),
        ),
        log=True,
    ),
    Panel("Fréchet distance", "FD of generated images", (Series(("eval/fd",), "", "-", "o"),), log=True),
    Panel("Fréchet Inception distance", "FID of generated images", (Series(("eval/fid",), "", "-", "o"),), log=True),
    Panel("Kernel distance", "KID of generated images", (Series(("eval/kid",), "", "-", "o"),), log=True),
    Panel("Weight of the distortion", "multiplier λ", (Series(("vae/lambda",)),)),
    Panel(
        "True return",
        "return of an episode",
        (
            Series(("episode/return",), "in training"),
            Series(("eval/return",), "evaluation, mean action", "", "o"),
            Series(("eval/stochastic_return",), "evaluation, sampled action", "", "^"),
        ),
    ),
    Panel(
        "Normalised score",
        "score (0 random, 1 expert)",
        (
            Series(("eval/score",), "mean action", "-", "o"),
            Series(("eval/stochastic_score",), "sampled action", "--", "^"),
        ),
        levels=((0.9, "0.9"), (1.0, "expert")),
    ),
    Panel(
        "Joint rotation error",
        "mean angle to the reference (rad)",
        (
            Series(("eval/rotation_rad",), "whole", "-", "o"),
            Series(("eval/rotation_without_heading_rad",), "without heading", "--", "^"),
        ),
    ),
    Panel("Falls", "share of the episodes", (Series(("eval/fallen_fraction",), "", "-", "o"),), y_range=(-0.03, 1.03)),
    Panel(
        "Discriminator accuracy",
        "fraction judged rightly",
        (
            Series(("discriminator/expert_accuracy",), "expert samples"),
            Series(("discriminator/policy_accuracy",), "policy samples", "--"),
            Series(("discriminator/real_accuracy",), "real images"),
            Series(("discriminator/fake_accuracy",), "generated images", "--"),
        ),
        levels=((0.5, "chance"),),
        y_range=(-0.03, 1.03),
    ),
    Panel("Information through the bottleneck", "mean KL to the prior (nats)", (Series(("bottleneck/kl_nats",)),)),
    Panel("Price of information", "multiplier β", (Series(("bottleneck/beta",)),)),
    Panel(
        "Reward that the policy learns from",
        "reward of a control step",
        (
            Series(("reward/mean",), "mean over samples"),
            Series(
                ("reward/mean", "reward/variance"),
                "± standard deviation",
                ":",
                value=lambda mean, variance: mean + np.sqrt(variance),
                band=False,
            ),
            Series(
                ("reward/mean", "reward/variance"),
                "± standard deviation",
                ":",
                value=lambda mean, variance: mean - np.sqrt(variance),
                band=False,
            ),
        ),
    ),
    Panel("Policy entropy", "entropy of an action (nats)", (Series(("policy/entropy_nats",)),)),
    Panel(
        "Discriminator entropy",
        "entropy of a verdict (nats)",
        (Series(("discriminator/entropy_nats",)),),
        levels=((math.log(2.0), "log 2"),),
    ),
    Panel("Discriminator loss", "adversarial loss", (Series(("discriminator/loss",)),)),
    Panel("Generator loss", "adversarial loss", (Series(("generator/loss",)),)),
    Panel(
        "Negative log-likelihood of the expert's actions",
        "nats an action",
        (
            Series(("policy/loss_nats",), "training samples"),
            Series(("policy/validation_nats",), "held-out samples", "--"),
        ),
    ),
    Panel("Policy loss", "clipped surrogate", (Series(("policy/loss",)),)),
    Panel("Value loss", "squared error of scaled returns", (Series(("value/loss",)),), log=True),
    Panel(
        "Gradient norms",
        "norm, before any clipping",
        (
            Series(("policy/gradient_norm",), "policy"),
            Series(("value/gradient_norm",), "value", "--"),
            Series(("discriminator/gradient_norm",), "discriminator", ":"),
            Series(("vae/gradient_norm",), "VAE"),
            Series(("generator/gradient_norm",), "generator"),
        ),
        log=True,
    ),
)


def choose_panels(metrics: Sequence[str], *, known: set[str]) -> list[Panel]:
    """The panels for these metrics, in their usual order; a metric that none shows gets a plain one after them.

    Raises ValueError for a name that is not known, with the nearest ones.
    """
    for name in metrics:
        if name not in known:
            groupless = [full for full in sorted(known) if full.endswith(f"/{name}")]
            near = groupless or difflib.get_close_matches(name, sorted(known))
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"unknown metric {name!r}; {hint}")
    asked = set(metrics) or known
    panels = [p._replace(series=tuple(s for s in p.series if asked.issuperset(s.metrics))) for p in PANELS]
    shown = {name for panel in panels for series in panel.series for name in series.metrics}
    plain = [Panel(name, "", (Series((name,)),)) for name in dict.fromkeys(metrics) if name not in shown]
    return [panel for panel in panels if panel.series] + plain
