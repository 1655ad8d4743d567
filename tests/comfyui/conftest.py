"""A small host that loads the node pack and runs graphs as ComfyUI does, by its first and its third contract.

It follows ComfyUI's documentation: a folder is imported under its path as name, NODE_CLASS_MAPPINGS come before
comfy_entrypoint, inputs are checked against their declaration and links by type, and a node runs once its inputs are
there.
"""

import asyncio
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PACK = Path(__file__).parents[2] / "comfyui"


class Io(ModuleType):
    """`comfy_api.latest.io`: the part that the documentation shows, keyword for keyword."""

    @dataclass
    class Schema:
        node_id: str
        category: str
        display_name: str | None = None
        inputs: list[Any] = field(default_factory=list)
        outputs: list[Any] = field(default_factory=list)
        hidden: list[Any] = field(default_factory=list)
        description: str = ""
        is_output_node: bool = False

    class NodeOutput:
        def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: str | None = None) -> None:
            self.result = args

    class ComfyNode:
        @classmethod
        def define_schema(cls) -> Any:
            raise NotImplementedError

    class Image:
        @dataclass
        class Input:
            id: str
            display_name: str | None = None
            optional: bool = False
            tooltip: str | None = None
            kind: str = field(default="IMAGE", init=False)

        @dataclass
        class Output:
            id: str | None = None
            display_name: str | None = None
            tooltip: str | None = None
            is_output_list: bool = False
            kind: str = field(default="IMAGE", init=False)

    class String:
        @dataclass
        class Input:
            id: str
            display_name: str | None = None
            optional: bool = False
            tooltip: str | None = None
            multiline: bool = False
            default: str | None = None
            kind: str = field(default="STRING", init=False)

    class Int:
        @dataclass
        class Input:
            id: str
            display_name: str | None = None
            optional: bool = False
            tooltip: str | None = None
            default: int | None = None
            min: int | None = None
            max: int | None = None
            step: int | None = None
            control_after_generate: bool | None = None
            kind: str = field(default="INT", init=False)

    class Float:
        @dataclass
        class Input:
            id: str
            display_name: str | None = None
            optional: bool = False
            tooltip: str | None = None
            default: float | None = None
            min: float | None = None
            max: float | None = None
            step: float | None = None
            kind: str = field(default="FLOAT", init=False)

    class Combo:
        @dataclass
        class Input:
            id: str
            options: list[str]
            display_name: str | None = None
            optional: bool = False
            tooltip: str | None = None
            default: str | None = None
            kind: str = field(default="COMBO", init=False)


class ComfyExtension:
    async def on_load(self) -> None:
        """Called once."""

    async def get_node_list(self) -> list[type]:
        raise NotImplementedError


def v3_inputs(schema: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """A schema's inputs as the first contract writes them: the host checks both alike."""
    declared = {}
    for one in schema.inputs:
        said = {key: value for key, value in vars(one).items() if value is not None and value is not False}
        options = {key: value for key, value in said.items() if key not in ("id", "kind", "options")}
        declared[one.id] = (one.options if one.kind == "COMBO" else one.kind, options)
    return declared


class Host:
    """What the pack registered, and a runner of graphs in ComfyUI's API format."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.version = 1 if getattr(module, "NODE_CLASS_MAPPINGS", None) is not None else 3
        if self.version == 1:
            self.nodes: dict[str, type] = dict(module.NODE_CLASS_MAPPINGS)
            self.titles = dict(module.NODE_DISPLAY_NAME_MAPPINGS)
            return
        extension = asyncio.run(module.comfy_entrypoint())
        assert isinstance(extension, ComfyExtension)
        asyncio.run(extension.on_load())
        listed = [(node.define_schema(), node) for node in asyncio.run(extension.get_node_list())]
        self.nodes = {schema.node_id: node for schema, node in listed}
        self.titles = {schema.node_id: schema.display_name for schema, _ in listed}

    def inputs(self, name: str) -> dict[str, tuple[Any, dict[str, Any]]]:
        """Required inputs of a node: type (or choices) and options."""
        node: Any = self.nodes[name]
        if self.version == 3:
            return v3_inputs(node.define_schema())
        assert set(node.INPUT_TYPES()) == {"required"}
        return dict(node.INPUT_TYPES()["required"])

    def outputs(self, name: str) -> tuple[str, ...]:
        """Types of a node's outputs."""
        node: Any = self.nodes[name]
        return tuple(o.kind for o in node.define_schema().outputs) if self.version == 3 else tuple(node.RETURN_TYPES)

    def check(self, graph: Mapping[str, Any], number: str) -> None:
        """Raises ValueError where a node's inputs aren't what it declares."""
        name, given = graph[number]["class_type"], graph[number]["inputs"]
        declared = self.inputs(name)
        if set(given) != set(declared):
            raise ValueError(f"{name}: inputs {sorted(given)}, declared {sorted(declared)}")
        for key, value in given.items():
            kind, options = declared[key]
            if isinstance(value, list):
                source, slot = value
                if self.outputs(graph[source]["class_type"])[slot] != kind:
                    raise ValueError(f"{name}.{key}: the link isn't of type {kind}")
            elif isinstance(kind, list):
                if value not in kind:
                    raise ValueError(f"{name}.{key}: {value!r} not in {kind}")
            elif kind in ("INT", "FLOAT"):
                if not options["min"] <= value <= options["max"]:
                    raise ValueError(f"{name}.{key}: {value} isn't in its range")
            elif not (kind == "STRING" and isinstance(value, str)):
                raise ValueError(f"{name}.{key}: {value!r} is no {kind}")

    def run(self, graph: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        """The outputs of every node, each run once, in the order of the links."""
        for number in graph:
            self.check(graph, number)
        done: dict[str, tuple[Any, ...]] = {}
        while len(done) < len(graph):
            for number, entry in graph.items():
                links = {k: v for k, v in entry["inputs"].items() if isinstance(v, list)}
                if number in done or any(source not in done for source, _ in links.values()):
                    continue
                inputs = entry["inputs"] | {k: done[source][slot] for k, (source, slot) in links.items()}
                done[number] = self.execute(entry["class_type"], inputs)
        return done

    def execute(self, name: str, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Run a node. Of the third contract a node has no state: its class is used, not an object."""
        node: Any = self.nodes[name]
        if self.version == 3:
            result = node.execute(**inputs).result
        else:
            one = node()
            result = getattr(one, one.FUNCTION)(**inputs)
        assert isinstance(result, tuple)
        assert len(result) == len(self.outputs(name))
        return result


def load_pack() -> ModuleType:
    """The folder, imported as ComfyUI imports one of its custom_nodes."""
    name = str(PACK).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[1, 3], ids=["v1", "v3"])
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """ComfyUI with what the third contract needs, and one whose comfy_api is older; an empty models directory."""
    name = str(PACK).replace(".", "_x_")
    folder_paths = ModuleType("folder_paths")
    folder_paths.models_dir = str(tmp_path / "models")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "folder_paths", folder_paths)
    api = ModuleType("comfy_api")
    api.__spec__ = importlib.util.spec_from_loader("comfy_api", None)
    monkeypatch.setitem(sys.modules, "comfy_api", api)
    if request.param == 3:
        latest = ModuleType("comfy_api.latest")
        latest.io, latest.ComfyExtension = Io("comfy_api.latest.io"), ComfyExtension  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    yield Host(load_pack())
    for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        del sys.modules[loaded]
