"""Components from outside: files named by `plugins=`, and installed packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

from diffusion_cli.errors import ConfigError
from diffusion_cli.paths import typed


def folders() -> list[Path]:
    """The `configs` folders of installed plug-ins; nothing is imported."""
    found = []
    for point in entry_points(group="dcli.plugins"):
        spec = importlib.util.find_spec(point.module.partition(".")[0])
        for place in (spec and spec.submodule_search_locations) or ():
            found.append(Path(place) / "configs")
    return [path for path in found if path.is_dir()]


def load(files: Iterable[str]) -> None:
    """Import the user's components: Python files or modules, in order."""
    for plugin in files:
        try:
            _import(plugin)
        except ConfigError:
            raise
        except Exception as problem:  # whatever a user's file may raise
            raise ConfigError(
                f"plugins: {plugin}: {type(problem).__name__}: {problem}",
                "dcli --debug ... shows where",
            ) from problem


def _import(plugin: str) -> None:
    path = typed(plugin, "plugins").resolve()
    if path.suffix != ".py":
        importlib.import_module(plugin)
        return
    if not path.is_file():
        raise ConfigError(f"plugins: {plugin}: there is no such file")
    name = f"dcli_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # nothing is left beside a user's file
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.dont_write_bytecode = before
