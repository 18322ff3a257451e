"""Scripts in processes of their own without their start-up: forked off a server that has imported what they import.

A process needs two to five seconds to import torch and what a script takes of it, often more than for its run here.
One forked off the server begins behind that, with nothing computed yet, and runs its script as `python SCRIPT ...`
does: as __main__, with its own arguments, output and exit code; if there are several, with what torchrun tells them.

Not here: torchrun itself, with which test_parallel.py starts the run whose process it kills; and the imports, which
run_script of conftest.py still makes.
"""
import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing import connection, forkserver
from pathlib import Path
from types import SimpleNamespace

import torch._dynamo  # noqa: F401  that and some others for the server's sake: torch imports them when they are needed
import torch.distributed as dist
import tyro.extras  # noqa: F401
from conftest import ROOT

import finetune_answers  # noqa: F401
import finetune_qa  # noqa: F401
import train  # noqa: F401
from plumbing import tokenizer_files  # noqa: F401

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["launched"])


def launched(script, *arguments, processes=1):
    """`python SCRIPT ARGUMENTS` in `processes` processes; returns exit code and texts as run_script does."""
    return Launch(script, *arguments, processes=processes).wait()


class Launch:
    """A script, or a function, in processes that have been started; `wait` for them."""

    def __init__(self, script, *arguments, processes=1):
        function = script if callable(script) else _run
        arguments = arguments if callable(script) else (script, *map(str, arguments))
        self.output, world = tempfile.TemporaryDirectory(), [{}]
        if processes > 1:                                        # as torchrun's agent does, the parent keeps the store
            self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            shared = dict(WORLD_SIZE=processes, MASTER_ADDR="127.0.0.1", MASTER_PORT=self.store.port,
                          TORCHELASTIC_USE_AGENT_STORE=True, TORCHELASTIC_RESTART_COUNT=0)
            world = [shared | dict(RANK=rank, LOCAL_RANK=rank) for rank in range(processes)]
        _start_server()
        self.processes = [SERVER.Process(target=_become, args=(self.output.name, environment, function, arguments))
                          for environment in world]
        for process in self.processes:
            process.start()

    def wait(self):
        """Exit code (the first that is not 0), stdout and stderr. If one fails, those that wait for it are ended."""
        running = {process.sentinel: process for process in self.processes}
        failed = 0
        while running:
            for sentinel in connection.wait(running):
                process = running.pop(sentinel)
                process.join()
                if process.exitcode and not failed:
                    failed = process.exitcode
                    for other in running.values():
                        other.kill()                 # it may stand in a sum that never ends, deaf to SIGTERM
        texts = {name: (Path(self.output.name) / name).read_text() for name in ("stdout", "stderr")}
        return SimpleNamespace(returncode=failed, **texts)


def _start_server():
    """It finds what it imports as a script finds it; so do the processes."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _become(output, environment, function, arguments):
    """The first thing that a process does."""
    for descriptor, name in (1, "stdout"), (2, "stderr"):
        os.dup2(os.open(Path(output) / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.chdir(ROOT)
    function(*arguments)


def _run(script, *arguments):
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
