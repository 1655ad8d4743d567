"""What a client may ask for, and how long anything may take."""

from dataclasses import dataclass

MAX_BODY_BYTES = 2**20
"""Of a request: 2 prompts of 32,000 characters, escaped, fit twice."""
MAX_HEAD_BYTES = 16 * 1024
"""Of a request's line and headers."""
WRITE_BYTES = 64 * 1024
"""That a client reads of its answer in `Limits.write_sec`, where so much is left."""
MAX_PROMPT_CHARS = 32_000
"""OpenAI's own limit; ours can be set up to it."""
MAX_PICTURES = 10
MAX_PIXELS = 40_000_000
"""Of all pictures and frames of a request."""


MAX_UPLOAD_BYTES = 20 * 2**20
"""Of a request with a picture."""
MAX_UPLOAD_PIXELS = 40_000_000
"""Of a picture to enlarge."""
MAX_UPLOADS_BYTES = 256 * 2**20
"""Of all requests with pictures that are served at the same time, from their first byte to their answer."""
MAX_UNREAD_BYTES = 256 * 2**20
"""Of all answers that clients have yet to read; while there are more, nothing new comes in."""
MAX_SIDE = 65_535
"""Of an enlarged picture; what a JPEG can have."""
UPSCALE_PIXELS = 2**20
UPSCALE_SHARE = 0.8
"""Of an upscale's time, after which the worker gives it up between two tiles; one that doesn't is stuck."""


@dataclass(frozen=True)
class Limits:
    """What an operator can set; times in seconds."""

    queue: int = 64
    """Pictures and frames that wait for the model."""
    per_key: int = 32
    """Requests of one key that are served at the same time."""
    prompt_chars: int = 4_000
    upscale_pixels: int = UPSCALE_PIXELS
    """Of an enlarged picture. Who allows larger ones than the default allows as many times the time."""
    queue_sec: float = 10
    """A picture whose drawing hasn't begun by then is refused."""
    total_sec: float = 60
    """From a request that has come whole to the end of its answer, whatever it waits for. A worker that is long at a
    batch (`draw_sec`) is stuck, and is replaced."""
    load_sec: float = 600
    """From a worker's start until its model is warm; one that takes longer is replaced."""
    body_sec: float = 20
    """For a client to send what it said it would."""
    write_sec: float = 20
    """For a client to read a piece of its answer, or the connection is cut."""
    grace_sec: float = 30
    """From the signal to end until what was accepted is given up."""

    @property
    def draw_sec(self) -> float:
        """Of the worker, for a batch."""
        return self.total_sec - self.queue_sec

    @property
    def upscale_sec(self) -> float:
        """Of the worker, for a picture to be enlarged; it gives up by itself before (`UPSCALE_SHARE`)."""
        return self.draw_sec * max(1.0, self.upscale_pixels / UPSCALE_PIXELS)
