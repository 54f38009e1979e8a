"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffusion_cli
from diffusion_cli import config

PACKAGE = Path(diffusion_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
COMPONENTS = [
    (role, name) for role, each in config.roles().items() for name in each.names()
]


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path) for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports at any depth, TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


def own(path: Path) -> set[str]:
    """The parts of the package that a file imports: `samplers`, `core`."""
    names = [name.split(".") for name in imports(path)]
    return {parts[1] for parts in names if parts[0] == "diffusion_cli" and parts[1:]}


def under(*folders: str) -> list[Path]:
    return [path for path in FILES if path.relative_to(PACKAGE).parts[0] in folders]


# folder: the parts of the package it may import besides itself and the base
KERNELS = {"philox_kernel", "norm_kernel"}
BASE = {"core", "registry", "rng", "errors", "paths", "settings"} | KERNELS
ARROWS = {
    "networks": set(),
    "processes": {"datasets"},
    "parametrisations": {"processes"},
    "couplings": set(),
    "datasets": {"failpoints"},
    "optimizers": set(),
    "objectives": {"denoiser", "processes", "couplings"},
    "guidance": {"denoiser", "processes", "variance"},
    "samplers": {"denoiser", "odes", "processes", "variance"},
    "metrics": {"datasets", "denoiser", "odes", "processes", "world"},
    "denoiser.py": {"networks", "parametrisations", "processes"},
    "variance.py": {"denoiser", "processes"},
}


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_follow_the_arrows(folder: str) -> None:
    allowed = ARROWS[folder] | BASE | {folder}
    strange = {str(path): own(path) - allowed for path in under(folder)}
    assert under(folder) and not any(strange.values()), strange


def test_the_base_imports_only_itself() -> None:
    files = [PACKAGE / f"{name}.py" for name in BASE]
    assert not {str(path): own(path) - BASE for path in files if own(path) - BASE}


def test_nothing_below_imports_the_commands() -> None:
    above = [PACKAGE / "cli.py", PACKAGE / "__main__.py", *under("commands")]
    assert not [path for path in FILES if path not in above and "commands" in own(path)]


def test_only_composition_sees_hydra() -> None:
    seeing = {
        path.name
        for path in FILES
        for name in imports(path)
        if name.split(".")[0] in ("hydra", "omegaconf")
    }
    assert seeing == {"compose.py", "config.py", "launchers.py", "search.py"}


def registering() -> set[str]:
    return {inspect.getmodule(config.roles()[r][n]).__name__ for r, n in COMPONENTS}  # type: ignore[union-attr]


def test_a_file_that_registers_is_imported_by_nobody() -> None:
    found = {str(path): set(imports(path)) & registering() for path in FILES}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize(("role", "name"), COMPONENTS)
def test_components_name_their_source(role: str, name: str) -> None:
    text = inspect.getdoc(config.roles()[role][name]) or ""
    sentence = text.partition("\n\n")[0]
    assert sentence.endswith("."), "the docstring begins with one sentence"
    assert re.search(r"^(Reference: \S|No reference: \w+ \w+)", text, re.M)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_nothing_read_from_a_file_can_run(path: Path) -> None:
    """Fault S1: no pickle, no torch.load, no eval: a checkpoint or a config is data."""
    strange = {
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "shelve",
        "marshal",
    }
    if path.name == "launchers.py":
        strange.remove("joblib")  # for its threads: they start commands
    assert not strange & {name.split(".")[0] for name in imports(path)}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in ("eval", "exec", "compile", "__import__", "os.system")
        assert called not in ("torch.load", "torch.hub.load", "yaml.load")
        for key in node.keywords:
            if key.arg == "allow_pickle":
                assert ast.unparse(key.value) == "False"


GLOBAL = re.compile(
    r"torch\.(randn?|randint|randperm|rand_like|randn_like|bernoulli|multinomial)\("
    r"|np\.random\.|(?<![\w.])random\.(random|randint|choice|shuffle|seed)\("
)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_random_numbers_come_from_the_counter(path: Path) -> None:
    assert not GLOBAL.search(path.read_text())


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.relative_to(PACKAGE).parts[0] in ARROWS],
    ids=module,
)
def test_components_neither_print_nor_read_the_environment(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "os.getenv")
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("os.environ", "sys.argv")
