"""What the help of a command that takes a preset ends with."""

from gigagan.config import preset_names

PRESETS = f"Presets: {', '.join(preset_names())}."
