"""fp64, fp32, TF32, bf16 and fp16: what each means for parameters, matrix products and the loss."""

from contextlib import AbstractContextManager, nullcontext

import torch

from txl.config.precision import Arithmetic, PrecisionConfig

TORCH_LOSS_SCALE = 65536.0  # at which torch begins unless it is told otherwise

AUTOCAST = {Arithmetic.bf16: torch.bfloat16, Arithmetic.fp16: torch.float16}


def parameter_dtype(precision: Arithmetic) -> torch.dtype:
    """Type of parameters and optimizer state: float64 for fp64, float32 for every other precision."""
    return torch.float64 if precision is Arithmetic.fp64 else torch.float32


def set_matmul_precision(precision: Arithmetic) -> None:
    """Let float32 matrix products use TF32 tensor cores if the precision is tf32, and forbid it otherwise."""
    torch.set_float32_matmul_precision("high" if precision is Arithmetic.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = precision is Arithmetic.tf32


def autocast(precision: Arithmetic, device: torch.device) -> AbstractContextManager[object]:
    """Under it, matrix products are in half precision and reductions in float32 (Micikevicius et al. 2018).

    Changes nothing for precisions that are not in AUTOCAST.
    """
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])


def loss_scaler(config: PrecisionConfig, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scaling for fp16, whose gradients underflow without it. Disabled for every other precision."""
    scale = TORCH_LOSS_SCALE if config.initial_loss_scale is None else config.initial_loss_scale
    return torch.amp.GradScaler(device.type, scale, enabled=config.name is Arithmetic.fp16)
