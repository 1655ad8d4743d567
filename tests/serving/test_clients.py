"""Row G12 of the fault matrix: OpenAI's oldest client that is supported does what the newest does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

OLDEST = "2.0.0"


@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_g12_the_oldest_client(tmp_path: Path) -> None:
    """The tests of the API once more, with that client in front of the installed one."""
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path),
        f"openai=={OLDEST}",
        "distro",  # which newer ones don't need
    ]
    subprocess.run(install, check=True)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    version = subprocess.run(
        [sys.executable, "-c", "import openai; print(openai.__version__)"],
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    assert version.stdout.strip() == OLDEST
    tests = Path(__file__).with_name("test_api.py")
    every = "slow or not slow"
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", every, str(tests)], env=env, check=False)
    assert done.returncode == 0
