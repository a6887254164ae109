"""What XLA compiles policies, and networks of plain convolutions, with."""

import jax

ON_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
"""YNNPACK multiplies matrices, by which PPO's passes take less time, but takes no convolutions, in which Eigen is
faster (jaxlib 0.10)."""


def compiler_options() -> dict[str, str]:
    """For `jax.jit`: `ON_CPU` on a CPU whose jaxlib knows it, else nothing."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=ON_CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return ON_CPU
