"""Presets, files and overrides to a validated tree, and back to YAML; messages that say what to do."""

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from gigagan.config.run import NETWORKS, RunConfig, kind_of
from gigagan.config.schedule import NUMBER, POINTS
from gigagan.errors import ConfigError


def preset_names() -> list[str]:
    """Names of the presets in the package, sorted."""
    folder = resources.files("gigagan") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load(preset: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of a preset (by name) or file (by path ending in .yaml), with overrides.

    A preset or file may name a preset as its `parent`, and then holds only what differs from it.

    Raises ConfigError for an unknown preset or key and for a value that is out of range.
    """
    tree = _read_preset(preset)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"{override!r} isn't an override; write section.key=value")
        _set(tree, key, _parse_yaml(value, what=override) if value else "")
    return from_dict(tree)


def from_dict(tree: dict[str, Any]) -> RunConfig:
    """A validated tree. Raises ConfigError with one line a fault."""
    _check_keys(tree, RunConfig)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_message(dict(fault)) for fault in error.errors())) from None


def to_yaml(cfg: BaseModel) -> str:
    """The whole tree as YAML, in the order of this file."""
    return yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False, width=120)


def _read_preset(preset: str) -> dict[str, Any]:
    path: Any = Path(preset)
    if path.suffix not in (".yaml", ".yml"):
        if preset not in preset_names():
            raise ConfigError(f"{preset}: no such preset{_did_you_mean(preset, preset_names())}")
        path = resources.files("gigagan") / "presets" / f"{preset}.yaml"
    elif not path.is_file():
        raise ConfigError(f"{preset}: no such file; give a preset ({', '.join(preset_names())}) or a .yaml file")
    tree = _parse_yaml(path.read_text(encoding="utf-8"), what=preset) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{preset}: holds a {type(tree).__name__}; expected sections such as `train:`")
    parent = tree.pop("parent", None)
    if parent is None:
        return tree
    if parent not in preset_names() or parent == preset:
        raise ConfigError(f"{preset}: parent is {parent!r}; expected another preset ({', '.join(preset_names())})")
    return _merged(_read_preset(parent), tree)


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The tree with changes, section by section."""
    merged = dict(tree)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _parse_yaml(text: str, *, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{what}: not YAML ({' '.join(str(error).split())}); mend or quote it") from None


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{dotted}: {parent} is a value, not a section")
    tree[last] = value


def _check_keys(tree: dict[str, Any], section: type[BaseModel], prefix: str = "") -> None:
    """An unknown key, with the nearest known one. pydantic would find it too, but suggests nothing."""
    for key, value in tree.items():
        field = section.model_fields.get(str(key))
        if field is None:
            raise ConfigError(
                f"{prefix}{key}: no such key{_did_you_mean(str(key), list(section.model_fields), prefix)}"
            )
        kind = field.annotation
        if section is RunConfig and key == "generator":
            if kind_of(value) not in NETWORKS:
                raise ConfigError(f"generator.kind is {kind_of(value)!r}; use {' or '.join(NETWORKS)}")
            kind = NETWORKS[kind_of(value)]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{key}: is a section; set {prefix}{key}.KEY=VALUE")
            _check_keys(value, kind, f"{prefix}{key}.")


def _did_you_mean(word: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(known)}"


def _message(fault: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"] if part not in (*NETWORKS, NUMBER, POINTS))
    reason = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{where}: {reason}" if where else reason
    return f"{where}: {reason} (got {fault['input']!r})"
