"""How long one client waits for each 429, in a process of its own: the threads of a load wait for one another.

python -m tests.serving.refusals URL SECONDS prints the seconds of each, a JSON list.
"""

import json
import sys
import time

import httpx


def main(url: str, seconds: float) -> None:
    found = []
    end = time.monotonic() + seconds
    with httpx.Client(timeout=60) as client:
        while time.monotonic() < end:
            started = time.monotonic()
            if client.post(url, json={"prompt": "a cat"}).status_code == 429:
                found.append(time.monotonic() - started)
            time.sleep(0.02)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
