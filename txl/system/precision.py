"""fp64, fp32, TF32, bf16 and fp16: what each means for parameters, matrix products and the loss."""

from contextlib import AbstractContextManager, nullcontext

import torch

from txl.config.precision import Arithmetic, PrecisionConfig

AUTOCAST = {Arithmetic.bf16: torch.bfloat16, Arithmetic.fp16: torch.float16}


def parameter_dtype(precision: Arithmetic) -> torch.dtype:
    """Parameters and optimizer state: float32, but in the float64 of proofs."""
    return torch.float64 if precision is Arithmetic.fp64 else torch.float32


def set_matmul_precision(precision: Arithmetic) -> None:
    """TF32 tensor cores for float32 products, only when that was asked for."""
    torch.set_float32_matmul_precision("high" if precision is Arithmetic.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = precision is Arithmetic.tf32


def autocast(precision: Arithmetic, device: torch.device) -> AbstractContextManager:
    """Matrix products in half precision, reductions in float32 (Micikevicius et al. 2018)."""
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])


def loss_scaler(config: PrecisionConfig, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scaling for fp16, whose gradients underflow without; a pass-through otherwise."""
    enabled = config.name is Arithmetic.fp16
    scale = {} if config.initial_loss_scale is None else {"init_scale": config.initial_loss_scale}
    return torch.amp.GradScaler(device.type, enabled=enabled, **scale)
