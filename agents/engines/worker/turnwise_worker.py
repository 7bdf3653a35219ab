"""What a vLLM server imports: weights from a folder of safetensors, by vLLM's four-phase protocol.

    PYTHONPATH=<this folder> ... --worker-extension-cls turnwise_worker.Extension
        --weight-transfer-config '{"backend": "safetensors_dir"}'

vLLM's own backends need a GPU. `turnwise serve-policy` passes the flags. With TURNWISE_NO_PREPACK=1
a CPU build keeps its weights as they were loaded: it would else copy them into oneDNN handles and
empty them, and a reload then answers 200 while the model is neither old nor new. With
TURNWISE_CPU_ADAPTERS=1 it keeps adapters off the requests that ask for none.

This file runs in the server's interpreter, which need not know turnwise, and imports nothing of it.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)


class Extension:
    """Adds nothing to the worker: naming it makes the worker import this module."""


@dataclass
class Root(WeightTransferInitInfo):
    """Where the trainer writes its folders."""

    root: str


@dataclass
class Files(WeightTransferUpdateInfo):
    """Files below the root, to be loaded in this order."""

    files: list[str]


class FromFolder(WeightTransferEngine):
    """Loads safetensors files that lie below the root."""

    init_info_cls = Root
    update_info_cls = Files

    def init_transfer_engine(self, init_info: Root) -> None:
        """Remember the root."""
        self.root = Path(init_info.root).resolve(strict=True)

    def start_weight_update(self) -> None:
        """Prepare every layer for weights in checkpoint form."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load; nothing is asynchronous here that would have to be waited for."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Files) -> None:
        """Load the tensors of each file."""
        for given in update_info.files:
            path = (self.root / given).resolve(strict=True)
            if not path.is_relative_to(self.root):
                raise ValueError(f"{given!r} is not below {self.root}")
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                self.model.load_weights((name, file.get_tensor(name)) for name in names)

    def finish_weight_update(self) -> None:
        """Put each layer back into the form that it computes with."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held."""


def keep_weights_unpacked() -> None:
    """Make a CPU build compute with the weights themselves, so that a reload reaches all."""
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    _custom_ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *shape, **options: False


def keep_adapters_apart() -> None:
    """Make a CPU build adapt nothing for requests that ask for no adapter.

    vLLM 0.32 marks those by slot -1, which its operations for a CPU take for the last slot: beside
    a request with an adapter, one without is computed by whatever adapter lies there.
    """
    from vllm.lora.ops.torch_ops import lora_ops

    shrink = lora_ops.bgmv_shrink

    def shrink_where_asked(inputs: Any, weights: Any, output: Any, slots: Any, *scale: Any) -> None:
        shrink(inputs, weights, output, slots, *scale)
        output.masked_fill_((slots < 0)[:, None], 0.0)

    lora_ops.bgmv_shrink = shrink_where_asked


WeightTransferEngineFactory.register_engine("safetensors_dir", FromFolder)
if os.environ.get("TURNWISE_NO_PREPACK"):
    keep_weights_unpacked()
if os.environ.get("TURNWISE_CPU_ADAPTERS"):
    keep_adapters_apart()
