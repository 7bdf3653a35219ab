"""Imports point one way, and nothing heavy is imported where it is not needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("sandboxes", "envs", "agents", "trainers", "cli")
HEAVY = {"torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors", "tensorboard"}
ALLOWED = {
    "sandboxes": {"docker", "httpx", "starlette", "uvicorn"},
    "envs": {"gymnasium", "numpy", "minigrid", "playwright"},
    "agents": {"numpy", "httpx", "uvicorn", "safetensors", "vllm"},
    "trainers": {"numpy", "rich", "jinja2", "ray", *HEAVY},
    "cli": {"rich", "tyro", "torch"},
}
"""Third-party packages; those of an extra only inside functions (see below)."""


class Import(NamedTuple):
    file: str
    line: int
    module: str
    eager: bool
    """Run when the file is imported, not when a function is called or a type is checked."""


def imports(layer: str) -> Iterator[Import]:
    for path in sorted((ROOT / layer).rglob("*.py")):
        yield from _walk(path, ast.parse(path.read_text()), eager=True)


def _walk(path: Path, node: ast.AST, *, eager: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        names = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{path}: relative imports hide which layer they reach"
            names = [child.module or ""]
        for name in names:
            yield Import(str(path.relative_to(ROOT)), child.lineno, name, eager)
        deferred = isinstance(child, ast.FunctionDef | ast.Lambda) or _only_types(child)
        yield from _walk(path, child, eager=eager and not deferred)


def _only_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def layer_of(module: str) -> str | None:
    return module.split(".")[1] if module.startswith("turnwise.") else None


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_itself_and_the_layers_below(layer):
    below = LAYERS[: LAYERS.index(layer) + 1]
    wrong = [found for found in imports(layer) if (layer_of(found.module) or layer) not in below]
    assert not wrong


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_no_package_that_it_is_not_allowed(layer):
    known = {"turnwise", *sys.stdlib_module_names, *ALLOWED[layer]}
    if layer == "agents":
        known |= {"torch"}  # where exactly: see the next test
    wrong = [found for found in imports(layer) if found.module.split(".")[0] not in known]
    assert not wrong


def test_below_the_trainers_only_the_engines_import_torch():
    files = {
        found.file
        for layer in ("sandboxes", "envs", "agents")
        for found in imports(layer)
        if found.module.split(".")[0] in HEAVY | {"vllm"}
    }
    assert files
    assert all(file.startswith("agents/engines/") for file in files), files


OPTIONAL = {"minigrid", "playwright", *ALLOWED["sandboxes"], *HEAVY}


def test_optional_packages_are_imported_inside_functions():
    wrong = [
        found
        for layer in ("sandboxes", "envs", "cli")
        for found in imports(layer)
        if found.eager and found.module.split(".")[0] in OPTIONAL
    ]
    assert not wrong


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_environments_rollout_records_and_replay_work_without_torch():
    modules = "envs, envs.check, agents.rollout, agents.evaluate, agents.replay, agents.viewer"
    names = ", ".join(f"turnwise.{name}" for name in modules.split(", "))
    assert not loaded_by(f"import {names}") & HEAVY


def test_the_command_imports_a_verb_only_when_it_is_called():
    loaded = loaded_by("import turnwise.cli.main as m; m.main(['--help'])")
    assert not loaded & {"numpy", "rich", "tyro", "gymnasium", *HEAVY}
    assert not {name for name in loaded if name.startswith(("turnwise.envs", "turnwise.agents"))}
