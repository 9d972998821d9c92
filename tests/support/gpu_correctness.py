"""The steps of tests/gpu_check.py that compare what a GPU computes with what it should."""

import contextlib
import copy
import itertools

import torch
from safetensors.torch import load_file

from tests.support.golden import FILES, geometry, load_model, model_config, segment_losses
from tests.support.gpu_rows import Rows
from tests.support.gpu_trainer import clean_up, device_of, made_trainer
from tests.support.interpreted_kernels import interpreter_fault
from tests.support.models import model_config as tiny_model_config
from tests.support.optimizers import optimizer_config
from txl.checkpoint.reference_format import from_reference
from txl.model.attention import attention_with_bias, relative_shift
from txl.model.fused_attention import relative_attention
from txl.model.transformer import TransformerXL
from txl.optim.build import build_optimizer
from txl.system.compiled_programs import count_compiled_programs

# Allowed relative error of outputs and gradients (Frobenius norm), by dtype and float32 products.
LIMITS = {
    ("float32", "highest"): 2e-5,
    ("float32", "high"): 3e-3,
    ("bfloat16", "highest"): 2e-2,
    ("float16", "highest"): 3e-3,
}
# Batch, heads, queries, keys, head width, distances, window.
SHAPES = {
    "base": (2, 8, 192, 384, 64, 384, None),
    "one query": (3, 2, 1, 201, 64, 201, None),
    "odd sizes, clamped": (2, 3, 65, 195, 40, 100, 130),
    "same length, clamped": (2, 4, 64, 704, 64, 401, 640),
    "no memory": (2, 2, 192, 192, 64, 192, None),
    "sixteen heads": (1, 16, 384, 768, 64, 768, None),
}
TINY_SHAPES = {"tiny": (1, 2, 5, 9, 16, 7, 8)}

Inputs = list[torch.Tensor]


def attention_inputs(shape: tuple, dtype: torch.dtype, device: torch.device) -> Inputs:
    """query, key, value as views of a projection's result, and by_distance as a view of a product's."""
    B, N, T, K, H, R, _ = shape
    torch.manual_seed(0)
    made = [torch.randn(B, length, N, H, device=device).to(dtype).transpose(1, 2) for length in (T, K, K)]
    made.append(torch.randn(N, B, T, R, device=device).to(dtype).transpose(0, 1))
    return [tensor.detach().requires_grad_() for tensor in made]


def kernels(rows: Rows) -> None:
    """The fused attention against float64: output and every gradient; its dropout against itself."""
    if rows.tiny and (fault := interpreter_fault()):
        return rows.add(skipped=fault)
    device = device_of(rows.tiny)
    shapes = TINY_SHAPES if rows.tiny else SHAPES
    for (kind, mode), (name, shape) in itertools.product(LIMITS, shapes.items()):
        case = {"dtype": kind, "products": mode, "shape": name}
        if rows.tiny and kind == "bfloat16":
            continue  # Triton's interpreter cannot multiply it
        with rows.guarded(**case):
            torch.set_float32_matmul_precision(mode)
            leaves = attention_inputs(shape, getattr(torch, kind), device)
            exact = [x.detach().double().requires_grad_() for x in leaves]
            window = shape[-1]
            found = relative_attention(*leaves, window, 0.0)
            weights = torch.randn_like(found)
            right = attention_with_bias(*exact[:3], relative_shift(exact[3], shape[3], window), 0.0)
            got = [found, *torch.autograd.grad(found, leaves, weights)]
            wanted = [right, *torch.autograd.grad(right, exact, weights.double())]
            error = max(relative_error(a, b) for a, b in zip(got, wanted, strict=True))
            rows.add(**case, error=error, ok=error < LIMITS[kind, mode])
    torch.set_float32_matmul_precision("highest")
    with rows.guarded(what="dropout"):
        dropout(rows, device)
    return None


def dropout(rows: Rows, device: torch.device) -> None:
    """The same seed drops the same, in both passes; about as many as asked."""
    size = 16 if rows.tiny else 64
    leaves = attention_inputs((2, 2, size, size, size, size, None), torch.float16, device)
    leaves[2] = torch.eye(size, dtype=torch.float16, device=device).expand(2, 2, -1, -1).contiguous().requires_grad_()
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(relative_attention(*leaves, None, 0.2))
    seen = torch.ones(size, size, device=device).tril().bool()
    kept = (found[0] != 0)[..., seen].float().mean().item()
    # The gradient of one-hot values is the sum of each column of the dropped probabilities.
    (grad,) = torch.autograd.grad(found[0], leaves[2], torch.ones_like(found[0]))
    agree = torch.allclose(grad[..., 0].float(), found[0].float().sum(-2), rtol=3e-2, atol=3e-2)
    same = torch.equal(found[0], found[1])
    rows.add(what="dropout 0.2", same_twice=same, kept=kept, backward_agrees=agree,
             ok=same and agree and abs(kept - 0.8) < (0.1 if rows.tiny else 0.02))  # fmt: skip


def softmax(rows: Rows) -> None:
    """The sum of training, with the tied lookup, against the definition in float64: loss and every gradient.

    With multi-token prediction, whose definition the tests of the adaptive softmax have, against the CPU in float64.
    """
    device, words = device_of(rows.tiny), 300 if rows.tiny else 20_000
    cutoffs = [words // 15, words // 5]
    shapes = {"tied": dict(), "div_val 2": dict(div_val=2, tie_projs=[False, True, True])}
    for (name, changes), weight, (kind, mode) in itertools.product(shapes.items(), (0.0, 0.5), LIMITS):
        case = {"shape": name, "multi_token_weight": weight, "dtype": kind, "products": mode}
        with rows.guarded(**case):
            torch.set_float32_matmul_precision(mode)
            torch.manual_seed(0)
            sizes = dict(d_model=32 if rows.tiny else 256, n_layer=1, **changes)
            exact = TransformerXL(tiny_model_config(**sizes), words, cutoffs, 16).double().train()
            model = copy.deepcopy(exact).float().to(device)
            input = torch.randint(words, (2, 16 if rows.tiny else 512))
            states, share = exact.embedding(input), 1 / input.numel()
            if weight:
                right, _ = exact.total_loss(states, input, share, multi_token_weight=weight)
            else:
                right = exact.loss(states, input).sum() * share
            right.backward()
            half = torch.autocast(device.type, getattr(torch, kind)) if "16" in kind else contextlib.nullcontext()
            with half:
                states = model.embedding(input.to(device))
                options = {"is_root": True, "multi_token_weight": weight}
                total, _ = model.total_loss(states, input.to(device), share, **options)
            total.backward()
            pairs = zip(model.parameters(), exact.parameters(), strict=True)
            errors = [relative_error(a.grad, b.grad) for a, b in pairs if b.grad is not None and b.grad.any()]
            of_loss = relative_error(total.detach(), right.detach())
            # bf16 rounds both factors of a gradient, and the lookup's rows once more.
            rows.add(
                **case,
                loss_error=of_loss,
                gradient_error=max(errors),
                ok=max(of_loss, *errors) < 2 * LIMITS[kind, mode],
            )
    torch.set_float32_matmul_precision("highest")


def golden(rows: Rows) -> None:
    """The reference's losses, gradients and LAMB steps, on the device, in float64."""
    device = device_of(rows.tiny)
    cases = [(path, case) for path, case in FILES.items() if isinstance(case, dict)]
    models = [item for item in cases if {"config", "segments"} <= set(item[1])]
    for path, case in models[:1] if rows.tiny else models:
        with rows.guarded(case=path.stem):
            tensors = load_file(path.with_suffix(".safetensors"))
            model, lengths = load_model(case, tensors).to(device).train(), geometry(case["config"])
            losses, _ = segment_losses(model, tensors["stream"].to(device), lengths, case["segments"])
            losses[-1].backward()
            right = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("grad/")}
            right = from_reference(right, model_config(case["config"]))
            mine = {name: p.grad for name, p in model.named_parameters()}
            of_loss = relative_error(torch.stack(losses).detach(), tensors["train/mean_loss_per_segment"])
            of_grad = max(relative_error(mine[name], grad) for name, grad in right.items() if grad.any())
            rows.add(case=path.stem, loss_error=of_loss, gradient_error=of_grad, ok=max(of_loss, of_grad) < 1e-6)
    for path, case in cases:
        if {"kwargs", "steps", "params"} <= set(case):
            with rows.guarded(case=path.stem):
                error = lamb_error(load_file(path.with_suffix(".safetensors")), case, device)
                rows.add(case=path.stem, weight_error=error, ok=error < 5e-6)


def lamb_error(tensors: dict[str, torch.Tensor], case: dict, device: torch.device) -> float:
    """Largest error of a weight after any of the reference's LAMB steps."""
    mine = {name: torch.nn.Parameter(tensors[f"init/{name}"].to(device)) for name in case["params"]}
    options = {name: case["kwargs"][name] for name in ("lr", "weight_decay")}
    optimizer = build_optimizer(optimizer_config("lamb", eps=1e-6, **options), mine.items())
    worst = 0.0
    for step in range(case["steps"]):
        for name, parameter in mine.items():
            parameter.grad = tensors[f"grad/{step}/{name}"].to(device)
        optimizer.step()
        for name, parameter in mine.items():
            worst = max(worst, (parameter.detach().cpu() - tensors[f"param/{step}/{name}"]).abs().max().item())
    return worst


def relative_error(found: torch.Tensor | None, right: torch.Tensor) -> float:
    assert found is not None
    found, right = found.double().cpu(), right.double().cpu()
    return ((found - right).norm() / right.norm().clamp(min=1e-30)).item()


WAYS = [  # precision, attention, compile; the first is what the others are compared with
    ("fp32", "eager", False), ("tf32", "triton", False), ("bf16", "eager", False), ("bf16", "sdpa", False),
    ("bf16", "triton", False), ("bf16", "triton", True), ("bf16", "triton", "graphs"),
    ("fp16", "triton", False), ("fp16", "eager", True),
]  # fmt: skip


def curves(rows: Rows) -> None:
    """Training steps in every way, from the same weights on the same tokens: the losses must lie on each other."""
    steps, first = 3 if rows.tiny else 50, None
    for precision, attention, compile in WAYS:
        if rows.tiny and (precision not in ("fp32", "bf16") or attention == "triton"):
            continue
        case = {"precision": precision, "attention": attention, "compile": compile}
        if not rows.has_time(10, **case):
            continue
        with rows.guarded(**case):
            layers = [] if rows.tiny else ["model.n_layer=4"]
            trainer = made_trainer(
                rows.tiny, "base", 8, steps, *layers, f"precision={precision}", f"attention={attention}",
                f"compile={str(compile).lower()}", "model.dropout=0.0", "scheduler.warmup_step=20",
            )  # fmt: skip
            losses = [step_loss(trainer) for _ in range(steps)]
            first = first or losses
            apart = max(abs(a - b) for a, b in zip(first, losses, strict=True))
            programs, scale = count_compiled_programs(), trainer.optimizer_step.loss_scale()
            # One program, if it was compiled: more would mean that something was compiled again.
            ok = apart < (0.05 if precision in ("bf16", "fp16") else 0.02) and programs == int(bool(compile))
            rows.add(**case, first=losses[0], last=losses[-1], apart=apart, programs=programs, loss_scale=scale, ok=ok)
            del trainer
            clean_up()


def step_loss(trainer) -> float:
    """Do one step; its loss in nats per token."""
    trainer.step()
    nats, tokens = trainer.optimizer_step.take_window()
    return nats / tokens


def deterministic(rows: Rows) -> None:
    """With deterministic=true, steps that are repeated give the same bits; no operation is refused."""
    for attention in ("eager",) if rows.tiny else ("eager", "triton"):
        for precision in ("fp32",) if rows.tiny else ("bf16", "fp16"):
            case = {"precision": precision, "attention": attention}
            with rows.guarded(**case), contextlib.ExitStack() as stack:
                stack.callback(torch.use_deterministic_algorithms, False)
                weights = []
                for _ in range(2):
                    trainer = made_trainer(
                        rows.tiny, "base", 4, 4, f"precision={precision}", f"attention={attention}",
                        "compile=false", "deterministic=true", *([] if rows.tiny else ["model.n_layer=4"]),
                    )  # fmt: skip
                    for _ in range(3):
                        trainer.step()
                    weights.append([p.detach().clone() for p in trainer.model.parameters()])
                    del trainer
                same = all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
                rows.add(**case, same_bits=same, ok=same)
