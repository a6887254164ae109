"""Flow++ in its sizes: the rows of the menu that train flows."""

from vdbjax.flows import flowpp
from vdbjax.flows.flowpp import DequantizerConfig

CIFAR10 = flowpp.Config()
"""Thesis section 3.3 as its released code has it: 31.4 million parameters at 32 x 32 x 3.

The text has weight normalisation throughout, the code for ImageNet at 32 x 32 alone; the text has 1 x 1 convolutions
before every coupling, the code for CIFAR-10 alone.
"""

CIFAR10_UNIFORM = flowpp.Config(filters=104, dequantizer=DequantizerConfig(kind="uniform"))
CIFAR10_AFFINE = flowpp.Config(filters=108, mixtures=0)
CIFAR10_NO_ATTENTION = flowpp.Config(filters=105, attention=False, dequantizer=DequantizerConfig(attention=False))
"""Table 3.2: wider where something is left out, so that all have about as many parameters."""

IMAGENET32 = flowpp.Config(
    layers=("columns",) * 7 + ("depth",) + ("channels",) * 3 + ("columns",) * 3,
    filters=128,
    blocks=20,
    pointwise=False,
    weight_norm=True,
    last_nonlinearity=True,
    dropout=0.0,
    dequantizer=DequantizerConfig(couplings=8, blocks=8, context_blocks=8, context_attention=True, context_norm=True),
    batch_size=32,
    init_images=32,
    learning_rate=1e-3,
    warmup_steps=5_000,
    decay="exponential",
    final_learning_rate=3e-4,
    average_decay=0.999222,
)
"""169.0 million parameters at 32 x 32 x 3."""

IMAGENET64 = flowpp.Config(
    layers=("depth",)
    + (("columns",) * 4 + ("depth",) + ("channels",) * 2 + ("columns",) * 2)
    + (("depth",) + ("channels",) * 2 + ("columns",) * 2),
    blocks=16,
    mixtures=4,
    pointwise=False,
    last_nonlinearity=True,
    dropout=0.0,
    dequantizer=DequantizerConfig(blocks=5, attention=False, context_blocks=5, context_norm=True),
    batch_size=72,
    init_images=72,
    learning_rate=4e-4,
    warmup_steps=10_000,
    decay="exponential",
    final_learning_rate=3e-4,
)
"""73.5 million parameters at 64 x 64 x 3. The reference began its warm-up anew at 230,000 and 280,000 steps."""

SMALL = flowpp.Config(
    layers=("depth",) + ("columns",) * 3 + ("channels",) * 2 + ("columns",) * 2,
    filters=32,
    blocks=2,
    attention=False,
    mixtures=4,
    dropout=0.0,
    dequantizer=DequantizerConfig(kind="uniform"),
    batch_size=32,
    init_images=256,
    learning_rate=2e-3,
    warmup_steps=100,
    decay="cosine",
    final_learning_rate=1e-4,
    average_decay=0.998,
    flip=True,
)
"""For two cores: attention would cost 2.7 times the time, and a variational dequantiser gains nothing in an hour."""

FLOWS = (
    ("flowpp-small", "Flow++ that trains in an hour on two cores", SMALL, 4_000),
    ("flowpp-cifar10", "Flow++ of CIFAR-10 (Ho et al. 2019): 31.4 million parameters", CIFAR10, 300_000),
    ("flowpp-cifar10-uniform", "the same with uniform dequantisation (Table 3.2)", CIFAR10_UNIFORM, 300_000),
    ("flowpp-cifar10-affine", "the same with affine couplings (Table 3.2)", CIFAR10_AFFINE, 300_000),
    ("flowpp-cifar10-no-attention", "the same without self-attention (Table 3.2)", CIFAR10_NO_ATTENTION, 300_000),
    ("flowpp-imagenet32", "Flow++ of ImageNet 32 x 32: 169.0 million parameters", IMAGENET32, 300_000),
    ("flowpp-imagenet64", "Flow++ of ImageNet 64 x 64: 73.5 million parameters", IMAGENET64, 230_000),
)
"""Name, description, config, iterations."""
