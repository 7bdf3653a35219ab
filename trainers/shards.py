"""Sharded checkpoints: every rank writes its own part, and any number of ranks reads them.

The files are those of torch.distributed.checkpoint. Tensors are named by parameter, so that a
process without shards reads them, too; the other way, whole tensors are split as they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

SHARDS = "shards"
"""Folder of a checkpoint that holds shards."""


def write_shards(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Write weights and optimizer; all ranks call this with the same folder.

    Raises:
        OSError: a rank could not write.
    """
    try:
        save(_named(model, optimizer), checkpoint_id=folder)
    except CheckpointException as error:
        raise OSError(f"cannot write shards to {folder}: {error}") from error


def read_shards(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Read what `write_shards` wrote, into whole tensors or into shards."""
    written = FileSystemReader(folder).read_metadata().state_dict_metadata
    for name, parameter in _trained(model):
        if f"optimizer.{name}.step" in written:
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    with torch.no_grad():
        load(_named(model, optimizer), checkpoint_id=folder)


def _named(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Name every tensor; what is read goes into these very tensors."""
    found: dict[str, Any] = {f"weights.{n}": p.detach() for n, p in model.named_parameters()}
    for name, parameter in _trained(model):
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"optimizer.{name}.{key}"] = value
    return found


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


@torch.no_grad()
def split_weights(whole: nn.Module, split: nn.Module) -> None:
    """Give each rank its part of the weights of `whole`."""
    for mine, full in zip(split.parameters(), whole.parameters(), strict=True):
        mine.copy_(_as(mine, full.detach()))


def split_optimizer(path: Path, trained: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
    """Read an optimizer's whole state from `path` and keep this rank's part of it."""
    saved = torch.load(path, weights_only=True, map_location="cpu")
    for index, state in saved["state"].items():
        parameter = trained[index]
        optimizer.state[parameter] = {
            key: _as(parameter, value) if value.shape == parameter.shape else value
            for key, value in state.items()
        }


def _as(parameter: nn.Parameter, full: Tensor) -> Tensor:
    """Return the part of `full` that `parameter` is of its own tensor."""
    assert isinstance(parameter.data, DTensor)
    mesh, placements = parameter.data.device_mesh, parameter.data.placements
    return distribute_tensor(full.to(parameter.device), mesh, placements)
