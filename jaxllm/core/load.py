"""Opening what a person names on the command line: `path.py:function`, a saved run.json, or a run folder."""

import importlib.util
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from jaxllm.core.config import Json, suggest
from jaxllm.core.errors import ConfigError


def call_config(target: str) -> Any:
    """The value of the argument-free function that `path.py:function` names.

    Without `:function`, the function named like the file is taken, or the only one that the file defines. The folder
    that holds the file's package is put on the import path, so that configs can build on each other.
    """
    path_text, _, name = target.partition(":")
    path = Path(path_text)
    if not path.is_file():
        raise ConfigError(
            f"{path_text}: no such file; name a config (configs/quickstart.py), a run.json or a run folder"
        )
    if path.suffix != ".py":
        raise ConfigError(f"{path_text} is neither a config (.py), a run.json nor a run folder")
    module = _import(path)
    functions = {
        k: v for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__
    }
    functions = {k: v for k, v in functions.items() if not k.startswith("_") and not isinstance(v, type)}
    if not name:
        name = path.stem if path.stem in functions else next(iter(functions)) if len(functions) == 1 else ""
    if name not in functions:
        asked = f"has no function {name!r}" + suggest(name, functions) if name else f"defines {', '.join(functions)}"
        raise ConfigError(f"{path_text} {asked}" + ("" if name else f"; say which: {path_text}:NAME"))
    try:
        return functions[name]()
    except ConfigError:
        raise
    except Exception as err:  # a config is a program of the user's: whatever it raises is theirs to mend
        raise ConfigError(f"{path_text}:{name}: {type(err).__name__}: {err}{_line_in(path, err)}") from err


def _line_in(path: Path, err: BaseException) -> str:
    """`, line N` of the innermost frame that lies in the config file."""
    lines = [f.lineno for f in traceback.extract_tb(err.__traceback__) if f.filename == str(path.resolve())]
    return f", line {lines[-1]}" if lines else ""


def _import(path: Path) -> Any:
    path = path.resolve()
    parts, root = [path.stem], path.parent
    while (root / "__init__.py").exists():
        parts.insert(0, root.name)
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    # A config outside of any package must not take the name of a module that something else imports.
    name = ".".join(parts) if len(parts) > 1 else f"jaxllm_config_{parts[0]}"
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        del sys.modules[name]
        raise
    except Exception as err:  # as above: the user's program
        del sys.modules[name]
        raise ConfigError(f"{path}: {type(err).__name__}: {err}{_line_in(path, err)}") from err
    return module


def saved_json(target: str) -> tuple[Json, Path] | None:
    """(raw config, run folder) if `target` is a run folder or a saved run.json, else None."""
    path = Path(target)
    if path.is_dir():
        if not (path / "run.json").is_file():
            raise ConfigError(f"{target} is a folder without run.json; name a run folder or a config file")
        path = path / "run.json"
    if path.suffix != ".json":
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8")), path.parent
    except FileNotFoundError:
        raise ConfigError(f"{target}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"{target} is not JSON: {err}") from None
