"""A training step of the hierarchical VAE in PyTorch, for an environment of its own: torch and NumPy alone.

The structure is that of openai/vdvae: bottleneck blocks after GELUs, an encoder that keeps the last features of each
resolution, layers of latents from the top down; with posteriors merged by precision, a Gaussian of one variance, Adam,
clipping and a running average of the parameters. Prints JSON.
"""

import argparse
import json
import math
import resource
import time

import torch
from torch import nn
from torch.nn import functional as F

LARGEST_LOG_STD = 6.0


def convolution(window, inputs, outputs, scale=1.0):
    made = nn.Conv2d(inputs, outputs, window, padding=window // 2)
    with torch.no_grad():
        made.weight.mul_(scale)
        made.bias.zero_()
    return made


class Block(nn.Module):
    def __init__(self, inputs, middle, outputs, side, residual=False, scale=1.0):
        super().__init__()
        window = 3 if side > 2 else 1
        self.residual = residual
        self.parts = nn.ModuleList(
            [
                convolution(1, inputs, middle),
                convolution(window, middle, middle),
                convolution(window, middle, middle),
                convolution(1, middle, outputs, scale),
            ]
        )

    def forward(self, x):
        y = x
        for part in self.parts:
            y = part(F.gelu(y))
        return x + y if self.residual else y


class Encoder(nn.Module):
    def __init__(self, sides, blocks, width, middle, channels):
        super().__init__()
        scale = math.sqrt(1 / sum(blocks))
        self.sides, self.enter = sides, convolution(3, channels, width)
        self.stacks = nn.ModuleList(
            nn.ModuleList(Block(width, middle, width, side, True, scale) for _ in range(count))
            for side, count in zip(sides, blocks)
        )

    def forward(self, x):
        x, found = self.enter(x), [None] * len(self.sides)
        for place in reversed(range(len(self.sides))):
            *kept, last = self.stacks[place]
            for block in kept:
                x = block(x)
            if place:
                found[place] = x
                x = F.avg_pool2d(last(x), self.sides[place] // self.sides[place - 1])
            else:
                found[place] = last(x)
        return found


class Layer(nn.Module):
    def __init__(self, width, middle, latents, side, scale):
        super().__init__()
        self.latents = latents
        self.prior = Block(width, middle, 2 * latents + width, side, scale=0.0)
        self.posterior = Block(2 * width, middle, 2 * latents, side)
        self.project = convolution(1, latents, width, scale)
        self.residual = Block(width, middle, width, side, True, scale)

    def forward(self, x, seen):
        """(the stream after the latents, KL of each image in nats)."""
        mean, log_std, more = self.prior(x).split([self.latents, self.latents, x.shape[1]], 1)
        seen_mean, seen_log_std = self.posterior(torch.cat([x, seen], 1)).chunk(2, 1)
        log_std, seen_log_std = (LARGEST_LOG_STD * torch.tanh(s / LARGEST_LOG_STD) for s in (log_std, seen_log_std))
        weight = torch.sigmoid(2 * (log_std - seen_log_std))
        merged = -0.5 * torch.logaddexp(-2 * log_std, -2 * seen_log_std)
        shift = weight * (seen_mean - mean)
        z = mean + shift + merged.exp() * torch.randn_like(mean)
        ratio = merged - log_std
        kl = 0.5 * ((2 * ratio).exp() + (shift * (-log_std).exp()) ** 2 - 1) - ratio
        return self.residual(x + more + self.project(z)), kl.sum((1, 2, 3))


class Model(nn.Module):
    def __init__(self, sizes, channels):
        super().__init__()
        sides, width, middle = sizes["resolutions"], sizes["width"], sizes["bottleneck_width"]
        scale = math.sqrt(1 / sum(sizes["layers"]))
        self.sides = sides
        self.encoder = Encoder(sides, sizes["encoder_blocks"], width, middle, channels)
        self.starts = nn.ParameterList(nn.Parameter(torch.zeros(1, width, side, side)) for side in sides)
        self.stacks = nn.ModuleList(
            nn.ModuleList(Layer(width, middle, sizes["latents"], side, scale) for _ in range(count))
            for side, count in zip(sides, sizes["layers"])
        )
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.head = convolution(1, width, channels)
        self.log_variance = nn.Parameter(torch.zeros(()), requires_grad=False)  # follows the error, by no gradient

    def forward(self, images):
        """(rate, squared error) of each image."""
        seen, rate, x = self.encoder(4 * (images - 0.5)), 0.0, None
        for place, (start, stack) in enumerate(zip(self.starts, self.stacks)):
            start = start.expand(len(images), -1, -1, -1)
            if x is None:
                x = start
            else:
                factor = self.sides[place] // self.sides[place - 1]
                x = start + F.interpolate(x, scale_factor=factor, mode="nearest")
            for layer in stack:
                x, kl = layer(x, seen[place])
                rate = rate + kl
        means = self.head(x * self.gain + self.shift) + 0.5
        return rate, ((images - means) ** 2).sum((1, 2, 3))


def measure(sizes, options):
    """Seconds of each step, after one that is not counted, and what they took of memory."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    channels, side = sizes["channels"], sizes["resolutions"][-1]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Model(sizes, channels).to(device)
    learnt = [value for value in model.parameters() if value.requires_grad]
    average = [value.detach().clone() for value in learnt]
    optimizer = torch.optim.Adam(learnt, lr=2e-4)
    images = torch.rand(options.batch_size, channels, side, side, device=device)
    numbers, weight = channels * side * side, 0.9999

    def step():
        rate, error = model(images)
        loss = ((1 - weight) * rate.mean() + weight * error.mean()) / numbers
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(learnt, 200.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, learnt, 0.001)
        return norm.item()

    norms, wall, processor = [step()], [], []
    for _ in range(options.steps):
        started, busy = time.perf_counter(), time.process_time()
        norms.append(step())
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - busy)
    return {
        "torch": torch.__version__,
        "device": device,
        "threads": options.threads,
        "parameters": sum(value.numel() for value in model.parameters()),
        "gradients_finite": all(math.isfinite(norm) for norm in norms),
        "wall": min(wall),
        "processor": min(processor),
        "peak_bytes": peak_bytes(device),
    }


def peak_bytes(device):
    """Of the GPU's memory, or of the host's where there is none."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", required=True, help="JSON of the model's sizes")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(json.dumps(measure(json.loads(options.sizes), options)))


if __name__ == "__main__":
    main()
