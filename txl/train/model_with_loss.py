"""The model of a training run, and its forward pass with the loss, as DistributedDataParallel must wrap it.

Shapes: B columns, T segment, T' segment with extended context, M memory, D model width.
"""

import logging
import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from txl.config.geometry import Geometry
from txl.config.schema import RunConfig
from txl.config.training import longest_context
from txl.model.attention import choose_backend
from txl.model.clusters import TokensByCluster
from txl.model.sampled_softmax import SampledWords, sampled_loss
from txl.model.transformer import TransformerXL
from txl.system.compiled_programs import forget_compiled_programs
from txl.system.devices import should_compile
from txl.system.precision import parameter_dtype
from txl.system.shared_average import share_memory
from txl.system.world import World

log = logging.getLogger(__name__)


def build_model(
    config: RunConfig, vocab_size: int, device: torch.device, one_micro_batch: bool = True
) -> TransformerXL:
    """The configured model with random weights, on its device; its layers compiled if that was asked for.

    Args:
        config: the run.
        vocab_size: how many tokens the model knows.
        device: where it trains.
        one_micro_batch: a step has no more. Graphs of the next one would overwrite the gradients of the first.

    Returns:
        The model.
    """
    precision = config.precision.name
    model = TransformerXL(
        config.model,
        vocab_size,
        config.data.cutoffs,
        longest_context(vars(config.train)),
        choose_backend(config.attention, device, precision, config.deterministic),
        config.recompute,
    )
    if should_compile(config.compile, device):
        forget_compiled_programs()  # those of an earlier training in this process
        graphs = config.compile == "graphs"
        if graphs and not one_micro_batch:
            log.warning("compile=graphs: a step has several micro-batches, so layers are compiled without CUDA graphs")
        model.compile_layers(graphs=graphs and one_micro_batch)
    return model.to(device, parameter_dtype(precision))


class ModelWithLoss(nn.Module):
    """Hidden states and their loss in one forward pass."""

    def __init__(self, model: TransformerXL, loss_is_scaled: bool = False):
        """`loss_is_scaled`: a loss scaler multiplies the loss before the backward pass."""
        super().__init__()
        self.model, self.loss_is_scaled = model, loss_is_scaled

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        mems: list[Tensor],
        geometry: Geometry,
        scale: float,
        groups: TokensByCluster,
        sample: SampledWords | None = None,
        multi_token_weight: float = 0.0,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Read one segment of a micro-batch.

        Args:
            input: token ids [B, T'].
            target: the tokens to predict [B, T].
            mems: per layer [B, M, D], or an empty list at the start.
            geometry: the lengths to train with.
            scale: factor of the loss that the backward pass starts from.
            groups: the targets sorted by cluster.
            sample: the words of a sampled softmax; None: the exact softmax.
            multi_token_weight: for the model's `total_loss`.

        Returns:
            scale * nats with gradient, nats in float64 without gradient, and the new memories.
        """
        hidden, mems = self.model(input, mems, geometry)
        if sample is not None:
            return *sampled_loss(self.model, hidden, target, scale, sample), mems
        is_root = not self.loss_is_scaled
        return *self.model.total_loss(hidden, target, scale, groups, is_root, multi_token_weight), mems


def average_gradients_over_ranks(
    module: ModelWithLoss, device: torch.device, sparse_tables: list[nn.Parameter], world: World
) -> DistributedDataParallel:
    """Wrap the module so that the backward pass averages its dense gradients over all ranks. Collective.

    Args:
        module: the model and its loss.
        device: where it is.
        sparse_tables: parameters with sparse gradients, which `average_sparse_gradient` averages instead.
        world: the ranks.

    Returns:
        What is called in place of the module.
    """
    sparse = [name for name, p in module.named_parameters() if any(p is table for table in sparse_tables)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, sparse)
    # find_unused_parameters keeps the gradients' buckets as they are built at first, so that a resumed run adds up in
    # the same order. Besides, a tail cluster without a token has no gradient. If all parameters are used, torch warns.
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    devices = [device] if device.type == "cuda" else None
    # Gradients that are views of the buckets are not copied out of them.
    averaged = DistributedDataParallel(module, devices, find_unused_parameters=True, gradient_as_bucket_view=True)
    exchange = share_memory(world) if device.type == "cpu" else None
    if exchange is not None:
        averaged.register_comm_hook(None, exchange.hook)
    return averaged
