# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""A Python that has imported PyTorch already, for the many short processes that the tests start.

Importing torch costs each of them three to four seconds of processor time, most of what the suite would take. A server
imports it once; a stand-in for the interpreter hands its arguments, variables, folder and streams to the server, which
forks a process that runs them. transformers, huggingface_hub and all of ours are imported by that process itself, from
the variables it was given. It ends without taking the interpreter apart, which with torch takes 0.4 seconds. Tests
that watch imports or stop and kill processes call `REAL` instead. All do where LLAVA_VIT_COLD is set, and on systems
other than Linux.
"""

import atexit
import fcntl
import gc
import json
import multiprocessing
import multiprocessing.resource_tracker
import os
import runpy
import selectors
import signal
import socket
import stat
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import NoReturn


REAL = os.environ.get("REAL_PYTHON", sys.executable)
SOCKET = "socket"
# File descriptors from here on are nobody's.
FREE = 512

# Stands in for the interpreter. What it cannot hand over it leaves to the real one.
STAND_IN = """
import json, os, signal, socket, sys

real, server, stand_in = sys.argv[1:4]
given = sys.argv[4:]
flags = [flag for flag in given[:2] if flag in ("-B", "-u")]
rest = given[len(flags):] if flags == given[:len(flags)] else given
known = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED")
other = [name for name in os.environ if name.startswith("PYTHON") and name not in known]
simple = rest and (rest[0] in ("-c", "-m") or rest[0][0] != "-") and "resource_tracker" not in " ".join(rest[:2])
if other or not simple:
    os.execv(real, [real, *given])
# More than the three streams where multiprocessing starts a process.
inherited = [number for number in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{number}")]
connection = socket.socket(socket.AF_UNIX)
connection.connect(server)
job = {"arguments": rest, "environment": dict(os.environ), "folder": os.getcwd(), "executable": stand_in}
job |= {"umask": os.umask(0), "pid": os.getpid(), "flags": flags, "numbers": inherited}
os.umask(job["umask"])
message = json.dumps(job).encode()
socket.send_fds(connection, [len(message).to_bytes(8, "big")], inherited)
connection.sendall(message)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: connection.sendall(bytes([number])))
code = int.from_bytes(connection.recv(4), "big", signed=True)
if code < 0:
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def available() -> bool:
    """Whether processes can be forked ready-made here, and are meant to be."""
    return not os.environ.get("LLAVA_VIT_COLD") and hasattr(os, "pidfd_open") and Path("/proc/self/stat").is_file()


def start(folder: Path, real: str = REAL) -> subprocess.Popen:
    """Starts the server, which ends when its standard input is closed, and writes the stand-in of the interpreter
    `real`, `folder / "python"`."""
    (folder / "stand_in.py").write_text(STAND_IN, encoding="utf-8")
    python = folder / "python"
    words = (real, "-IS", str(folder / "stand_in.py"), real, str(folder / SOCKET), str(python))
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    python.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n', encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    # Bound here, so that who connects before the server is ready waits for it.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / SOCKET))
        listener.listen(64)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.Popen(
            [real, __file__, str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
            pass_fds=[listener.fileno()],
        )


def preload() -> None:
    """Imports what reads no variable that a test sets, and seldom changes."""
    import av  # noqa: F401
    import jinja2  # noqa: F401
    import numpy  # noqa: F401
    import packaging.version  # noqa: F401
    import PIL.Image  # noqa: F401
    import PIL.ImageOps  # noqa: F401
    import regex  # noqa: F401
    import safetensors.torch  # noqa: F401
    import tokenizers  # noqa: F401
    import torch._dynamo
    import torch._meta_registrations
    import torch.distributed.tensor
    import torch.export  # noqa: F401
    import tqdm  # noqa: F401
    import yaml  # noqa: F401

    loaded = {"transformers", "huggingface_hub", "accelerate", "llava_vit_hf"} & set(sys.modules)
    assert not loaded, f"{loaded} read variables when they are imported, so each process has to import them"


def serve(listener: socket.socket) -> dict:
    """Forks a process for every job, in which alone this returns, with the job. Ends with its standard input."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    children: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                for pid, _ in children.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            elif key.fileobj is listener:
                connection, _ = listener.accept()
                job = receive(connection)
                pid = os.fork()
                if pid == 0:
                    # What closes itself later might close what has its number by then.
                    for closed in (selector, connection, *(connection for _, connection in children.values())):
                        closed.close()
                    return job
                for copy in job["copies"]:
                    os.close(copy)
                process = os.pidfd_open(pid)
                children[process] = pid, connection
                selector.register(process, selectors.EVENT_READ)
                selector.register(connection, selectors.EVENT_READ, pid)
            elif isinstance(key.fileobj, socket.socket):
                # Signals to pass on; or the stand-in is gone, and what it stands for goes with it.
                numbers = key.fileobj.recv(16)
                for number in numbers or [signal.SIGKILL]:
                    os.kill(key.data, number)
                if not numbers:
                    selector.unregister(key.fileobj)
            else:
                pid, connection = children.pop(key.fd)
                _, status = os.waitpid(pid, 0)
                selector.unregister(key.fd)
                os.close(key.fd)
                if connection in selector.get_map():
                    selector.unregister(connection)
                    connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
                connection.close()


def receive(connection: socket.socket) -> dict:
    header, copies, _, _ = socket.recv_fds(connection, 8, 64)
    length, message = int.from_bytes(header, "big"), b""
    while len(message) < length:
        message += connection.recv(length - len(message))
    return {**json.loads(message), "copies": copies}


def run(job: dict) -> None:
    """Runs a job as the interpreter would, in this process."""
    import numpy
    import torch

    # Out of each other's way first.
    copies = [fcntl.fcntl(copy, fcntl.F_DUPFD, FREE) for copy in job["copies"]]
    os.closerange(0, FREE)
    for number, copy in zip(job["numbers"], copies, strict=True):
        os.dup2(copy, number)
        os.close(copy)
    os.chdir(job["folder"])
    os.umask(job["umask"])
    os.environ.clear()
    os.environ.update(job["environment"])
    os.getppid = lambda: parent_of(job["pid"])
    sys.executable = job["executable"]
    multiprocessing.set_executable(sys.executable)
    # What the server's own tracker is reached by is closed.
    multiprocessing.resource_tracker._resource_tracker.__init__()
    sys.dont_write_bytecode = "-B" in job["flags"] or "PYTHONDONTWRITEBYTECODE" in os.environ
    if "-u" in job["flags"] or "PYTHONUNBUFFERED" in os.environ:
        sys.stdout.reconfigure(write_through=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    numpy.random.seed()

    mode, *arguments = job["arguments"]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__builtins__ = __builtins__
    search = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *sys.path[1:]]
    if mode == "-m":
        sys.argv = arguments
        sys.path[:] = [os.getcwd(), *search]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif mode == "-c":
        sys.argv = ["-c", *arguments[1:]]
        sys.path[:] = ["", *search]
        exec(compile(arguments[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = [mode, *arguments]
        sys.path[:] = [str(Path(mode).resolve().parent), *search]
        main.__file__ = mode
        exec(compile(Path(mode).read_bytes(), mode, "exec"), main.__dict__)


def end(job: dict) -> NoReturn:
    """Runs a job, and ends as the interpreter would except that nothing is freed."""
    code: object = None
    try:
        run(job)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        if code == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit((code or 0) & 0xFF)


def parent_of(pid: int) -> int:
    """The parent of the stand-in, which whoever started it takes for the process itself."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 1


if __name__ == "__main__":
    preload()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        todo = serve(listening)
    end(todo)
