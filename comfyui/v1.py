"""The nodes by ComfyUI's first contract: a class each, with INPUT_TYPES, RETURN_TYPES, FUNCTION and CATEGORY."""

from typing import Any

from .nodes import CATEGORY, NODES, Input, Node


def _declared(one: Input) -> tuple[Any, dict[str, Any]]:
    """Type and options of an input."""
    options = {"tooltip": one.tooltip, "default": one.default, "min": one.least, "max": one.most, "step": one.step}
    options = {key: value for key, value in options.items() if value is not None}
    if one.kind == "STRING":
        options["multiline"] = True
    if one.kind == "INT" and one.name.endswith("seed"):
        options["control_after_generate"] = True
    return (list(one.choices()) if one.choices is not None else one.kind), options


def _class_of(node: Node) -> type:
    def input_types(cls: type) -> dict[str, Any]:
        return {"required": {one.name: _declared(one) for one in node.inputs}}

    def run(self: Any, **inputs: Any) -> tuple[Any]:
        return (node.run(**inputs),)

    members = {
        "INPUT_TYPES": classmethod(input_types),
        "RETURN_TYPES": ("IMAGE",),
        "FUNCTION": "run",
        "CATEGORY": CATEGORY,
        "DESCRIPTION": node.description,
        "run": run,
    }
    return type(node.name, (), members)


NODE_CLASS_MAPPINGS = {node.name: _class_of(node) for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.name: node.title for node in NODES}
