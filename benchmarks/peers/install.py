"""Install the peers into a virtual environment of their own: install.py VENV_DIR.

llama-cpp-python comes as source and is built for this CPU: it needs cmake and g++, and some ten minutes on two cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

PYTHON_PEERS = ["torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "airllm==4.0.0", "gguf", "safetensors"]
LLAMA_CPP = "llama-cpp-python==0.3.36"
CMAKE_ARGS = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"


def install(directory: Path) -> Path:
    """Make the environment; the path of its interpreter."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *PYTHON_PEERS], check=True)
    subprocess.run([*pip, LLAMA_CPP], check=True, env=os.environ | {"CMAKE_ARGS": CMAKE_ARGS})
    return python


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(install(Path(sys.argv[1])))
