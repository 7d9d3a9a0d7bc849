"""Imports go one way, and the light side stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "deepspeed", "peft", "accelerate", "trl", "datasets", "safetensors", "tensorboard"}
# A package and what it may import of ours. The longest name that fits a module decides.
ALLOWED = {
    "worker.contract": {"worker.contract"},
    "worker.storage": {"worker.storage", "worker.contract"},
    "worker": {"worker"},
    "client": {"client", "worker.contract"},
    "api": {"api", "worker.contract", "worker.storage"},
    "api.domain": {"api.domain", "worker.contract"},
    "api.store": {"api.store", "api.domain", "api.settings", "api.errors", "api.tokens", "worker.contract"},
    "api.migrations": {"api.migrations", "api.store", "api.settings", "worker.contract"},
}
OURS = {"api", "client", "worker"}
# The torch-free half of the worker: what the launcher and the rehearsal are made of.
LIGHT = [
    "worker.__main__",
    "worker.attempt",
    "worker.launcher",
    "worker.reporter",
    "worker.run",
    "worker.stages.rehearse",
]


def modules() -> Iterator[tuple[str, Path]]:
    for package in sorted(OURS):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """All modules that a file names in its imports, also inside functions, with their lines."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            # `from worker import contract` names worker.contract.
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_every_import_goes_the_one_way() -> None:
    wrong = []
    for module, path in modules():
        rule = max((package for package in ALLOWED if within(module, package)), key=len)
        for line, name in imports(module, path):
            # The bare name of a package gives nothing of it but the place where it lies.
            if name not in OURS and name.split(".")[0] in OURS and not any(within(name, a) for a in ALLOWED[rule]):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def test_nothing_outside_the_worker_imports_torch() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in modules()
        if within(module, "worker.contract") or within(module, "worker.storage") or not within(module, "worker")
        for line, name in imports(module, path)
        if name.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_the_contract_needs_pydantic_alone() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in modules()
        if within(module, "worker.contract")
        for line, name in imports(module, path)
        if (top := name.split(".")[0]) not in sys.stdlib_module_names
        and top not in {"pydantic", "pydantic_core", "worker"}
    ]
    assert wrong == []


@pytest.mark.parametrize("module", LIGHT)
def test_the_launcher_and_the_rehearsal_load_nothing_heavy(module: str) -> None:
    heavy = sorted(HEAVY | {"numpy", "fastapi", "sqlalchemy", "api", "client"})
    program = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"


def test_the_launcher_starts_its_ranks_before_it_loads_its_http_client() -> None:
    program = "import sys, worker.launcher; print('httpx' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "False"
