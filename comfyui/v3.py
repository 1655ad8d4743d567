"""The nodes by ComfyUI's third contract: a schema each, given by an extension. Imported where comfy_api is there."""

from typing import Any

from comfy_api.latest import ComfyExtension, io

from .nodes import CATEGORY, NODES, Input, Node


def _declared(one: Input) -> Any:
    """An input in the schema's words."""
    if one.kind == "IMAGE":
        return io.Image.Input(one.name, tooltip=one.tooltip)
    if one.kind == "STRING":
        return io.String.Input(one.name, tooltip=one.tooltip, default=one.default, multiline=True)
    if one.choices is not None:
        return io.Combo.Input(one.name, options=list(one.choices()), tooltip=one.tooltip, default=one.default)
    numbers = {"tooltip": one.tooltip, "default": one.default, "min": one.least, "max": one.most}
    if one.kind == "FLOAT":
        return io.Float.Input(one.name, step=one.step, **numbers)
    return io.Int.Input(one.name, control_after_generate=one.name.endswith("seed"), **numbers)


def _class_of(node: Node) -> type:
    def define_schema(cls: type) -> Any:
        return io.Schema(
            node_id=node.name,
            display_name=node.title,
            category=CATEGORY,
            description=node.description,
            inputs=[_declared(one) for one in node.inputs],
            outputs=[io.Image.Output()],
        )

    def execute(cls: type, **inputs: Any) -> Any:
        return io.NodeOutput(node.run(**inputs))

    members = {"define_schema": classmethod(define_schema), "execute": classmethod(execute)}
    return type(node.name, (io.ComfyNode,), members)


class GigaGANExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type]:
        return [_class_of(node) for node in NODES]


async def comfy_entrypoint() -> ComfyExtension:
    """What ComfyUI calls when it loads the folder."""
    return GigaGANExtension()
