"""Several processes that train one network, one for each device: what each does, and what all know afterwards.

Every process draws the same batches and the same augmentation, and takes its part of each batch. Gradients are those of
the whole batch, so that the number of devices changes no result but for rounding; unless the network itself looks
across images (batch normalisation) or draws numbers (dropout), which each process does for its own part.
"""

import copy
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lenslib.errors import InputError
from lenslib.settings import Settings

# how many processes there are is in the record
logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
# weights from which on a block of a network is dealt out over devices on its own
LARGE = 1_000_000


def open_fabric(settings: Settings, device: str, precision: str):
    """Fabric on the devices that a training is to use. `precision` holds where the settings say "auto" on a processor,
    if that computes it. InputError where there are not so many devices, or they cannot be used from here."""
    from lightning.fabric import Fabric

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if settings.precision != "auto":
        precision = settings.precision
    elif on_gpu:
        precision = "bf16-mixed"
    elif precision == "bf16-mixed" and not _computes_bf16():
        precision = "32-true"
    placement = _placement(settings, on_gpu)
    if on_gpu and ":" in device:
        placement = {"devices": [_number(settings, device)]}
    return Fabric(accelerator="cuda" if on_gpu else "cpu", precision=precision, **placement)


def _number(settings: Settings, device: str) -> int:
    """N of "cuda:N": Fabric, given how many devices, takes them from the first on."""
    number = device.partition(":")[2]
    if not number.isdecimal() or int(number) >= torch.cuda.device_count():
        raise InputError(f"no device '{device}' here: there are {torch.cuda.device_count()} GPUs, counted from 0")
    if settings.devices > 1:
        raise InputError(f"{device} is one device, not {settings.devices}: write cuda, or set devices to 1")
    return int(number)


def _computes_bf16() -> bool:
    """Whether the processor has instructions for bf16; without, torch would translate every number there and back."""
    return any(known is True for name, known in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def _placement(settings: Settings, on_gpu: bool) -> dict:
    """The arguments of Fabric that say how many processes there are, and what each holds.

    Started by `srun` with several tasks, the processes are those of Slurm, with `devices` a node; otherwise this one
    starts the others, by its own command. InputError where that cannot be.
    """
    if settings.devices == 1:
        return {"devices": 1}
    if hasattr(sys, "ps1"):
        raise InputError(
            "a notebook cannot start the processes that several devices need: set devices to 1, or train from a "
            f"terminal with `lenslib train ... --devices {settings.devices}`"
        )
    if on_gpu and settings.devices > torch.cuda.device_count():
        raise InputError(f"devices must be at most {torch.cuda.device_count()}, the GPUs here, not {settings.devices}")
    from lightning.fabric.plugins.environments import LightningEnvironment
    from lightning.fabric.strategies import ModelParallelStrategy

    of_slurm = int(os.environ.get("SLURM_NTASKS", 1)) > 1
    nodes = int(os.environ.get("SLURM_NNODES", 1)) if of_slurm else 1
    strategy = "ddp"
    if settings.strategy == "fsdp":
        strategy = ModelParallelStrategy(_deal, settings.devices * nodes, tensor_parallel_size=1)
    plugins = [] if of_slurm else [LightningEnvironment()]
    return {"devices": settings.devices, "num_nodes": nodes, "strategy": strategy, "plugins": plugins}


def _deal(network: nn.Module, mesh) -> nn.Module:
    """Deal the weights out over the processes: each holds its part of every large block, and of what is left."""
    from torch.distributed.fsdp import fully_shard

    mesh = mesh["data_parallel"]
    # what is inside comes first
    for module in reversed(list(network.modules())):
        if isinstance(module, nn.Sequential | nn.ModuleList):
            for block in module:
                if sum(weight.numel() for weight in block.parameters()) >= LARGE and not _has_large(block):
                    fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def _has_large(block: nn.Module) -> bool:
    """Whether a block of this one is dealt out already."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in block.modules())


def is_helper() -> bool:
    """Whether this process only helps another to train: all that is written and said is left to the first."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0


class Processes:
    """All processes of a training, as one of them sees them."""

    def __init__(self, fabric):
        from lightning.fabric.strategies import ModelParallelStrategy

        self.fabric, self.count, self.rank = fabric, fabric.world_size, fabric.global_rank
        self.dealt = isinstance(fabric.strategy, ModelParallelStrategy)
        if self.rank:  # each leaves out its own share of what its images give
            torch.manual_seed(torch.initial_seed() + self.rank)

    def set_up(self, network: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The network as all processes train it, and a copy of it for the mean of its weights over steps."""
        if not self.dealt:
            return self.fabric.setup_module(network), copy.deepcopy(network)
        # once dealt out, it cannot be copied
        averaged, strategy = copy.deepcopy(network), self.fabric.strategy
        averaged = strategy.setup_module(strategy.precision.convert_module(averaged))
        return self.fabric.setup_module(network), averaged

    def part(self, size: int) -> tuple[slice, float]:
        """This process's images of a batch of `size`, and what their mean counts for in the mean over processes."""
        first, last = size * self.rank // self.count, size * (self.rank + 1) // self.count
        if first == last:  # fewer images than processes: the others wait for the gradients of this one all the same
            return slice(0, 1), 0.0
        return slice(first, last), self.count * (last - first) / size

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes of a number that each has."""
        if self.count > 1:
            torch.distributed.all_reduce(value)  # in place
            value = value / self.count
        return value

    def gathered(self, value: Tensor) -> Tensor:
        """The value [...] of every process, [processes, ...], on the processor."""
        if self.count == 1:
            return value[None]
        value = value.to(self.fabric.device).contiguous()
        values = [torch.empty_like(value) for _ in range(self.count)]
        torch.distributed.all_gather(values, value)
        return torch.stack(values).cpu()

    def predicted(self, predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """`predict(images)`, a part of them in each process."""
        if self.count == 1:
            return predict(images)
        size = -(-len(images) // self.count)
        # as many for each: the last begins anew where images run out
        mine = torch.arange(self.rank * size, (self.rank + 1) * size) % len(images)
        return self.gathered(predict(images[mine])).flatten(0, 1)[: len(images)]

    def settle(self, network: nn.Module) -> None:
        """Give all processes the first one's running means, such as those of batch normalisation."""
        if self.count > 1:
            kept = network.state_dict()
            for name, buffer in network.named_buffers():
                if name in kept:
                    torch.distributed.broadcast(buffer, 0)

    def state_dict(self, part) -> dict:
        """The whole state of a network, an optimizer or the like, wherever pieces of it lie. All processes must ask."""
        if not self.dealt:
            return part.state_dict()
        from torch.distributed.tensor import DTensor
        from torch.utils._pytree import tree_map

        return tree_map(lambda value: value.full_tensor() if isinstance(value, DTensor) else value, part.state_dict())

    def load_state_dict(self, part, state: dict) -> None:
        """Take up a state that `state_dict` gave."""
        if self.dealt and isinstance(part, nn.Module):
            present = part.state_dict()
            state = {name: _dealt(value, present[name]) for name, value in state.items()}
        elif self.dealt and "param_groups" in state:
            weights = [weight for group in part.optimizer.param_groups for weight in group["params"]]
            moments = {
                key: {name: _dealt(value, weights[key]) for name, value in found.items()}
                for key, found in state["state"].items()
            }
            state = state | {"state": moments}
        part.load_state_dict(state)


def _dealt(value: Tensor, weight: Tensor) -> Tensor:
    """A whole tensor, or the piece of it that lies here where the weight of its shape is dealt out."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


@contextmanager
def launched(fabric) -> Iterator[None]:
    """Start the other processes, where there are to be any, and end them where this one fails: they would wait."""
    if fabric.world_size > 1:
        fabric.launch()
    try:
        yield
    except BaseException:
        started = getattr(fabric.strategy.launcher, "procs", [])
        helpers = started[:]
        started.clear()  # Fabric would end this process too, before it has said why
        for helper in helpers:
            helper.kill()
        raise
