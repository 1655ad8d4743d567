"""GigaGAN's nodes for ComfyUI, by whichever of its two contracts this ComfyUI knows.

ComfyUI looks for NODE_CLASS_MAPPINGS first and for comfy_entrypoint only without them, so exactly one is there.
"""

from importlib.util import find_spec

if find_spec("comfy_api") is not None:
    from .v3 import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
else:
    from .v1 import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
