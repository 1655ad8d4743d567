"""GigaGAN's nodes for ComfyUI, by whichever of its two contracts this ComfyUI knows.

ComfyUI looks for NODE_CLASS_MAPPINGS first and for comfy_entrypoint only without them, so exactly one is there.
"""

try:
    # A ComfyUI between the two has a comfy_api without what the newer contract needs.
    from comfy_api.latest import ComfyExtension, io  # noqa: F401
except ImportError:
    from .v1 import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
else:
    from .v3 import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
