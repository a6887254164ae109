"""The networks and the step of `vdbjax.images.gan` in PyTorch, for an environment of its own: torch and NumPy alone.

`numbers IN.npz OUT.npz` takes the weights, images and noise of a file and adds losses, gradients and weights after a
step; the project's test holds itself against those. `time` measures training steps; with --latent 0 there is no code.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def lrelu(x):
    return F.leaky_relu(x, 0.2)


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        hidden = min(inputs, outputs)
        self.conv0 = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.conv1 = nn.Conv2d(hidden, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x):
        residual = self.conv1(lrelu(self.conv0(lrelu(x))))
        return (self.shortcut(x) if self.shortcut else x) + 0.1 * residual


class Generator(nn.Module):
    def __init__(self, size, filters, max_filters, noise):
        super().__init__()
        scales = int(np.log2(size // 4))
        widths = [min(max_filters, filters * 2**s) for s in range(scales, -1, -1)]
        self.width, self.scales = widths[0], scales
        self.embedding = nn.Parameter(torch.randn(1, 1))
        self.start = nn.Linear(noise + 1, 16 * widths[0])
        for s in range(scales):
            setattr(self, f"block{s}", Block(widths[s], widths[s + 1]))
        setattr(self, f"block{scales}", Block(filters, filters))
        self.image = nn.Conv2d(filters, 3, 3, padding=1)

    def forward(self, noise):
        label = (self.embedding / self.embedding.norm(dim=1, keepdim=True)).expand(len(noise), 1)
        x = self.start(torch.cat([noise, label], 1)).view(-1, self.width, 4, 4)
        for s in range(self.scales):
            x = F.interpolate(getattr(self, f"block{s}")(x), scale_factor=2)
        return torch.tanh(self.image(lrelu(getattr(self, f"block{self.scales}")(x))))


class Discriminator(nn.Module):
    """With a latent size its code is a draw, where there is noise, or the mean; without one there is no code."""

    def __init__(self, size, filters, max_filters, latent, head_activation):
        super().__init__()
        self.scales, self.latent, self.head_activation = int(np.log2(size // 4)), latent, head_activation
        widths = [min(max_filters, filters * 2**s) for s in range(self.scales + 1)]
        self.image = nn.Conv2d(3, filters, 3, padding=1)
        self.block0 = Block(filters, filters)
        for s in range(self.scales):
            setattr(self, f"block{s + 1}", Block(widths[s], widths[s + 1]))
        if latent:
            self.mean, self.log_std = (nn.Conv2d(widths[-1], latent, 1) for _ in range(2))
        self.head = nn.Linear(16 * (latent or widths[-1]), 1)

    def forward(self, x, noise=None):
        x = self.block0(self.image(x))
        for s in range(self.scales):
            x = getattr(self, f"block{s + 1}")(F.avg_pool2d(x, 3, 2, 1))
        if not self.latent:
            return self.head(lrelu(x).flatten(1))[:, 0], None, None
        mean, std = self.mean(x), self.log_std(x).exp()
        code = mean if noise is None else mean + std * noise
        code = lrelu(code) if self.head_activation == "leaky_relu" else code
        return self.head(code.flatten(1))[:, 0], mean, std


def code_kl(mean, std, kl):
    places = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).sum(1)
    return places.mean() if kl == "per-place" else places.sum((1, 2)).mean()


def discriminator_loss(model, real, fake, noise_real, noise_fake, *, r1, beta, constraint, kl):
    """(loss, KL in nats); `r1` weighs half the squared slope. No KL without a code."""
    real = real.requires_grad_()
    on_real, on_fake = model(real, noise_real), model(fake, noise_fake)
    loss = F.softplus(-on_real[0]).mean() + F.softplus(on_fake[0]).mean()
    if r1:
        (slope,) = torch.autograd.grad(on_real[0].sum(), real, create_graph=True)
        loss = loss + 0.5 * r1 * slope.square().flatten(1).sum(1).mean()
    if on_real[1] is None:
        return loss, None
    nats = 0.5 * sum(code_kl(mean, std, kl) for _, mean, std in (on_real, on_fake))
    return loss + beta * (nats - constraint), nats


def generator_loss(discriminator, fake, noise):
    return F.softplus(-discriminator(fake, noise)[0]).mean()


def optimizer_of(model, learning_rate):
    return torch.optim.RMSprop(model.parameters(), lr=learning_rate, alpha=0.99, eps=1e-8)


# Weights and their names: flax has kernels [height, width, in, out] and rows of (height, width, channel).


def named(model, spread):
    """Flax's name -> (torch parameter, how to bring it there and back)."""
    found = {}
    for name, value in model.named_parameters():
        path = name.replace(".", "/")
        if name.endswith("weight"):
            path = path.removesuffix("weight") + "kernel"
        found[path] = (value, _layout(name, value, spread))
    return found


def _layout(name, value, spread):
    """(to torch, from torch) for a parameter; `spread` gives the channels that a flattened 4 x 4 map has."""
    if name.endswith("bias") and name.startswith("start"):
        return (
            lambda a: a.reshape(4, 4, -1).transpose(2, 0, 1).ravel(),
            lambda a: a.reshape(-1, 4, 4).transpose(1, 2, 0).ravel(),
        )
    if name == "start.weight":
        inputs = value.shape[1]
        return (
            lambda a: a.reshape(inputs, 4, 4, -1).transpose(3, 1, 2, 0).reshape(-1, inputs),
            lambda a: a.reshape(-1, 4, 4, inputs).transpose(3, 1, 2, 0).reshape(inputs, -1),
        )
    if name == "head.weight":
        return (
            lambda a: a.reshape(4, 4, spread, 1).transpose(3, 2, 0, 1).reshape(1, -1),
            lambda a: a.reshape(1, spread, 4, 4).transpose(2, 3, 1, 0).reshape(-1, 1),
        )
    if value.ndim == 4:
        return lambda a: a.transpose(3, 2, 0, 1), lambda a: a.transpose(2, 3, 1, 0)
    return lambda a: a, lambda a: a


def put(layout, arrays):
    with torch.no_grad():
        for name, (value, (there, _)) in layout.items():
            value.copy_(torch.from_numpy(np.ascontiguousarray(there(arrays[name]))))


def got(layout, pick):
    # Copies: the generator's step adds to the gradients of the discriminator.
    return {name: back(pick(value).detach().numpy().copy()) for name, (value, (_, back)) in layout.items()}


def nchw(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def numbers(source, out):
    """One step of the discriminator and one of the generator, for each case of the file."""
    torch.manual_seed(0)
    given: dict[str, Any] = dict(np.load(source))
    sizes, found = json.loads(str(given["sizes"])), dict[str, Any]()
    for case, options in json.loads(str(given["cases"])).items():
        latent = sizes["latent"] if options["beta"] is not None else None
        shape = (sizes["size"], sizes["filters"], sizes["max_filters"])
        generator = Generator(*shape, sizes["noise"])
        discriminator = Discriminator(*shape, latent, options["head_activation"])
        spread = latent or sizes["max_filters"]
        layouts = {"generator": named(generator, spread), "discriminator": named(discriminator, spread)}
        for name, layout in layouts.items():
            put(layout, {path: given[f"{case}/{name}/{path}"] for path in layout})
        real, noise = nchw(given["real"]), torch.from_numpy(given["noise"])
        codes = [nchw(each) for each in given["codes"]] if latent else [None] * 3
        steps = {
            name: optimizer_of(part, sizes["learning_rate"])
            for name, part in (("generator", generator), ("discriminator", discriminator))
        }
        loss, nats = discriminator_loss(
            discriminator,
            real,
            generator(noise[0]).detach(),
            codes[0],
            codes[1],
            r1=options["r1"],
            beta=options["beta"],
            constraint=options["constraint"],
            kl=options["kl"],
        )
        loss.backward()
        found |= {
            f"{case}/discriminator_slope/{k}": v for k, v in got(layouts["discriminator"], lambda p: p.grad).items()
        }
        steps["discriminator"].step()
        loss_g = generator_loss(discriminator, generator(noise[1]), codes[2] if options["draws"] else None)
        generator.zero_grad()
        loss_g.backward()
        found |= {f"{case}/generator_slope/{k}": v for k, v in got(layouts["generator"], lambda p: p.grad).items()}
        steps["generator"].step()
        for name, layout in layouts.items():
            found |= {f"{case}/{name}_after/{k}": v for k, v in got(layout, lambda p: p).items()}
        found[f"{case}/losses"] = np.array([loss.item(), loss_g.item(), nats.item() if latent else 0.0], np.float32)
    np.savez_compressed(out, **given, **found)


def measure(options):
    """Images a second of whole steps, R1 included, by the wall clock and by processor time; prints JSON."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    shape, latent = (options.size, options.filters, options.max_filters), options.latent or None
    generator, average = (Generator(*shape, options.noise).to(device, memory_format=layout) for _ in range(2))
    discriminator = Discriminator(*shape, latent, "none").to(device, memory_format=layout)
    steps = [optimizer_of(part, 1e-4) for part in (generator, discriminator)]
    real, beta = torch.rand(options.batch, 3, options.size, options.size, device=device) * 2 - 1, 0.1
    real = real.to(memory_format=layout)

    def step():
        nonlocal beta
        noise = torch.randn(2, options.batch, options.noise, device=device)
        codes = [torch.randn(options.batch, latent, 4, 4, device=device) if latent else None for _ in range(2)]
        discriminator.zero_grad()
        fake = generator(noise[0]).detach()
        loss, nats = discriminator_loss(
            discriminator, real.clone(), fake, *codes, r1=10.0, beta=beta, constraint=0.1, kl="per-image"
        )
        loss.backward()
        steps[1].step()
        if latent:
            beta = max(0.0, beta + 1e-5 * (nats.item() - 0.1))
        generator.zero_grad()
        discriminator.requires_grad_(False)
        generator_loss(discriminator, generator(noise[1]), None).backward()
        discriminator.requires_grad_(True)
        steps[0].step()
        with torch.no_grad():
            for mean, new in zip(average.parameters(), generator.parameters()):
                mean.lerp_(new, 0.001)

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(count):
        started, busy = time.perf_counter(), time.process_time()
        for _ in range(count):
            step()
        wait()
        return time.perf_counter() - started, time.process_time() - busy

    first = timed(1)[0]
    timed(options.warmup)
    wall, processor = timed(options.steps)
    found = {"torch": torch.__version__, "device": device, "first": first, "wall": wall, "processor": processor}
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("numbers")
    one.add_argument("source")
    one.add_argument("out")
    two = commands.add_parser("time")
    for name, value in (
        ("size", 32),
        ("filters", 32),
        ("max-filters", 256),
        ("latent", 256),
        ("noise", 256),
        ("batch", 64),
        ("steps", 5),
        ("warmup", 1),
        ("threads", 2),
    ):
        two.add_argument(f"--{name}", type=int, default=value)
    two.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    if options.command == "numbers":
        numbers(options.source, options.out)
    else:
        measure(options)


if __name__ == "__main__":
    main()
