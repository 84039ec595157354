# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Executes the shipped modules under audit hooks, and reports what their bodies did beyond defining classes.

Run as a script: each case of the JSON in its first argument, name to `{"mode", "folder"}`, is executed in a process
forked from this one, which has imported everything that a shipped module may import. Mode `package` imports
`llava_vit_hf` from `folder`; mode `remote` loads the classes of a saved `folder` as `trust_remote_code` does. What is
forbidden is refused and recorded; so is every change of global state. Prints JSON: name to a list of findings.
"""

import gc
import importlib
import json
import locale
import logging
import os
import random
import re
import signal
import sys
import threading
import traceback
import warnings


sys.dont_write_bytecode = True

import av  # noqa: E402, F401
import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402
import PIL.ImageOps  # noqa: E402, F401
import torch  # noqa: E402
import transformers  # noqa: E402, F401
from transformers.dynamic_module_utils import get_class_from_dynamic_module, init_hf_modules  # noqa: E402


# Audit events by their beginnings: network, processes, files and folders, environment, native code, the interpreter.
FORBIDDEN = (
    *("socket.", "ssl.", "http.", "urllib.", "ftplib.", "smtplib.", "imaplib.", "poplib.", "webbrowser."),
    *("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.startfile", "pty."),
    *("os.putenv", "os.unsetenv", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink"),
    *("os.chmod", "os.chown", "os.chdir", "os.chflags", "os.truncate", "os.utime", "os.setxattr", "os.kill"),
    *("shutil.", "tempfile.", "fcntl.", "mmap.", "sqlite3.", "syslog.", "resource.", "signal.", "ctypes."),
    *("pickle.", "builtins.input", "sys.settrace", "sys.setprofile", "sys.addaudithook"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PACKAGES = {"torch", "numpy", "PIL", "transformers", "llava_vit_hf", "transformers_modules"} | sys.stdlib_module_names
# What shipped files register at import: an operator for compilers, named by the hash of its file, and its gradient.
OPERATOR = re.compile(r"llava_vit_hf::segment_attention_[0-9a-f]{16}(_backward)?")


class Audit:
    """A hook that refuses what our modules must not do; what happens without a module of ours is left alone."""

    def __init__(self, folders: list[str]):
        self.folders, self.found, self.active = (
            tuple(os.path.realpath(folder) + os.sep for folder in folders),
            [],
            True,
        )

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.active or not (why := self._forbidden(event, arguments)) or not self._is_ours():
            return
        self.found.append(why)
        raise PermissionError(why)

    def _forbidden(self, event: str, arguments: tuple) -> str | None:
        if event == "open":
            return f"open {arguments[0]!r} to write" if arguments[2] & WRITING else None
        if event == "import":
            return None if arguments[0].split(".")[0] in PACKAGES else f"import {arguments[0]}"
        return f"{event} {arguments!r}"[:300] if event.startswith(FORBIDDEN) else None

    def _is_ours(self) -> bool:
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_filename.startswith(self.folders):
                return True
            frame = frame.f_back
        return False


def state() -> dict:
    """Global state that importing a module must leave as it is."""
    handlers = {name: list(map(str, logging.getLogger(name).handlers)) for name in (None, "transformers", "torch")}
    return {
        "torch default dtype": torch.get_default_dtype(),
        "torch default device": str(torch.get_default_device()),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "torch determinism": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "torch precision": torch.get_float32_matmul_precision(),
        "torch random state": torch.get_rng_state().tolist(),
        "torch print options": vars(torch._tensor_str.PRINT_OPTS).copy(),
        "torch operators": {name for name in torch._C._dispatch_get_all_op_names() if not OPERATOR.fullmatch(name)},
        "numpy random state": str(np.random.get_state()),
        "numpy errors": np.geterr(),
        "numpy print options": str(np.get_printoptions()),
        "random state": random.getstate(),
        "warnings filters": (list(warnings.filters), warnings.showwarning),
        "logging": (logging.root.level, logging.root.disabled, logging.root.manager.disable, handlers),
        "log level of transformers": logging.getLogger("transformers").level,
        "locale": locale.setlocale(locale.LC_ALL),
        "signal handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "module search path": (list(sys.path), list(sys.meta_path), list(sys.path_hooks)),
        "environment": dict(os.environ),
        "working folder": os.getcwd(),
        "threads": threading.active_count(),
        "interpreter": (sys.excepthook, sys.displayhook, sys.stdout, sys.stderr, sys.getrecursionlimit()),
        "garbage collection": (gc.isenabled(), gc.get_threshold()),
        "largest image of Pillow": PIL.Image.MAX_IMAGE_PIXELS,
    }


def import_package(folder: str) -> None:
    """Imports every module of the package in `folder`."""
    importlib.import_module("llava_vit_hf")
    for name in sorted(os.listdir(os.path.join(folder, "llava_vit_hf"))):
        if name.endswith(".py") and name != "__init__.py":
            importlib.import_module(f"llava_vit_hf.{name[:-3]}")


def load_remote(folder: str) -> None:
    """Loads every class that the configurations of a saved folder name."""
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        with open(os.path.join(folder, name), encoding="utf-8") as stream:
            for reference in json.load(stream).get("auto_map", {}).values():
                for entry in filter(None, [reference] if isinstance(reference, str) else reference):
                    get_class_from_dynamic_module(entry, folder)


def run_case(mode: str, folder: str) -> list[str]:
    """Findings of one case, in this process."""
    from transformers.utils.hub import HF_MODULES_CACHE

    init_hf_modules()
    if mode == "package":
        sys.path.insert(0, folder)
    audit = Audit([folder, HF_MODULES_CACHE])
    before, loaded = state(), set(sys.modules)
    sys.addaudithook(audit)
    try:
        (import_package if mode == "package" else load_remote)(folder)
    except PermissionError:
        # Recorded; any other error is a fault of the test.
        if not audit.found:
            raise
    audit.active = False
    after = state()
    changes = [f"changed: {name}" for name in before if before[name] != after[name]]
    ours = {name for name in set(sys.modules) - loaded if "llava_vit" in name.split(".")[-1]}
    if not audit.found and len(ours) < 8:
        raise RuntimeError(f"only {sorted(ours)} were executed")
    return audit.found + changes


def in_a_fork(case: dict) -> list[str]:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            answer = run_case(**case)
        except BaseException:
            answer = [f"FAULT {traceback.format_exc()}"]
        with os.fdopen(writer, "w") as stream:
            json.dump(answer, stream)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text)


if __name__ == "__main__":
    # What the shipped files take from transformers is imported beforehand, as bodies of others are not judged.
    transformers_modules, cases = json.loads(sys.argv[1])
    for module, names in transformers_modules.items():
        for name in names:
            getattr(importlib.import_module(module), name)
    print(json.dumps({name: in_a_fork(case) for name, case in cases.items()}))
