# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Loads a model folder or repo as a stranger's process would, checks its files by hash, and saves its features.

Run by `load_back.py` with a JSON request on stdin:

    {"source": folder or repo id, "revision": commit or null, "files": {name: sha256}, "output": .npz to write}

The installed `llava_vit_hf`, if any, cannot be imported here: only the code that was published runs.
"""

import json
import sys
from pathlib import Path


# In place of this script's own folder, whose names would hide others.
sys.path[0] = str(Path(__file__).resolve().parents[2])
sys.modules["llava_vit_hf"] = None

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from huggingface_hub import snapshot_download  # noqa: E402
from packaging.version import Version  # noqa: E402
from transformers import AutoModel, AutoProcessor  # noqa: E402

from conversion.common.files import sha256_of_file  # noqa: E402
from conversion.common.model_folder import PublishError  # noqa: E402
from conversion.publishing.hub_client import HubClient  # noqa: E402


def main() -> int:
    request = json.load(sys.stdin)
    try:
        folder = check_hashes(request)
    except (PublishError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    source, revision = request["source"], request["revision"]
    if Version(transformers.__version__).major < 5:
        # Its AutoProcessor looks for processor_config.json on the main branch, whatever the revision.
        source, revision = str(folder), None
    features = extract(source, revision)
    np.savez(request["output"], **features)
    return 0


def check_hashes(request: dict) -> Path:
    """Compares every file with what it must be; a repo is downloaded first, at exactly the asked commit.

    Returns:
        The folder that holds them.

    Raises:
        PublishError: if the download fails, or a file is missing or has other contents.
    """
    folder = Path(request["source"])
    if request["revision"] is not None:
        folder = Path(
            HubClient().call(
                f"Downloading {request['source']}",
                snapshot_download,
                request["source"],
                revision=request["revision"],
                allow_patterns=list(request["files"]),
            )
        )
    for name, expected in request["files"].items():
        found = sha256_of_file(folder / name) if (folder / name).is_file() else "absent"
        if found != expected:
            raise PublishError(f"{name} of {request['source']}: sha256 is {found}, expected {expected}.")
    return folder


def extract(source: str, revision: str | None) -> dict[str, np.ndarray]:
    """Features of an image and a clip made by formula, on the CPU in the stored dtype, as float32."""
    options = {"trust_remote_code": True} | ({"revision": revision} if revision else {})
    processor = AutoProcessor.from_pretrained(source, **options)
    model = AutoModel.from_pretrained(source, dtype="auto", **options).eval()
    # A block of patches, where the model takes them in blocks.
    side = model.config.patch_size * getattr(model.config, "merge_size", 1)
    calls = {"image": {"images": pattern(4 * side + 3, 6 * side)}}
    calls["video"] = {"videos": np.stack([pattern(3 * side, 4 * side, shift) for shift in range(3)]), "num_frames": 3}
    features = {}
    for name, samples in calls.items():
        inputs = processor(**samples, native_resolution=True)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            outputs = model(**inputs, output_hidden_states=True)
        arrays = {"last_hidden_state": outputs.last_hidden_state, "pooler_output": outputs.pooler_output}
        arrays["merged_hidden_state"] = getattr(outputs, "merged_hidden_state", None)
        arrays |= {f"hidden_states[{index}]": state for index, state in enumerate(outputs.hidden_states)}
        features |= {f"{name}.{key}": array.float().numpy() for key, array in arrays.items() if array is not None}
    return features


def pattern(height: int, width: int, shift: int = 0) -> np.ndarray:
    """An RGB picture `(height, width, 3)` uint8 in which rows, columns and channels all differ."""
    rows, columns = np.mgrid[:height, :width]
    channels = (7 * rows + 3 * columns, rows * columns // 5 + 40, 11 * columns - 5 * rows)
    return ((np.stack(channels, axis=-1) + 13 * shift) % 256).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())
