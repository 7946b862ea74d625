"""Runs a function of a helper module in two processes under gloo, as torchrun would start them.

As a script: `python two_processes.py MODULE FUNCTION FOLDER` with torchrun's environment variables; writes
FOLDER/FUNCTION.RANK.pt.
"""

import importlib
import os
import pathlib
import socket
import subprocess
import sys

import torch

from hapicl.engine import distributed


def run_in_two(function, folder):
    """Call `function(rank, size, folder)` in two processes; gives their two results."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    # a library that warns does so on the screen of every user
    quiet = [sys.executable, "-W", "error::FutureWarning"]
    command = [*quiet, __file__, function.__module__, function.__name__, str(folder)]
    started = [
        subprocess.Popen(
            command,
            env=common | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    return [
        torch.load(pathlib.Path(folder) / f"{function.__name__}.{rank}.pt", weights_only=False)
        for rank in "01"
    ]


def main(module, name, folder):
    """One of the two processes."""
    with distributed.processes("cpu") as world:
        result = getattr(importlib.import_module(module), name)(world.rank, world.size, pathlib.Path(folder))
        torch.save(result, pathlib.Path(folder) / f"{name}.{world.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
