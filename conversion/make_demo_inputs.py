# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Makes what the demo needs: a small pretraining checkpoint, two images and two videos; and a small VLM to try.

    python conversion/make_demo_inputs.py demo_output

The weights are random with peaked attention, so that dense and packing could disagree if something were wrong. The
media are formulas; their sizes do not divide by the patch size.
"""

import shutil
import sys
from pathlib import Path

import torch
from PIL import Image


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.common.arguments import ArgumentParser  # noqa: E402
from conversion.source.encoder import SourceConfig  # noqa: E402
from conversion.source.peaked_weights import peaked_state_dict  # noqa: E402
from conversion.source.small_vlm import small_tower, write_vlm  # noqa: E402
from conversion.verification.cases import rings  # noqa: E402


CONFIG = SourceConfig(
    hidden_size=128, num_attention_heads=2, num_hidden_layers=4, intermediate_size=512, patch_size=14
)


def write_video(path: Path, frames: int, height: int, width: int) -> None:
    """An H.264 video of `frames` frames at 8 frames per second."""
    import av  # which those who take `CONFIG` alone need not have

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for index in range(frames):
            image = rings(height, width, phase=4.0 * index / frames)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="where backbone.pt, 1.jpg, 2.jpg, 1.mp4, 2.mp4 and vlm go")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(peaked_state_dict(CONFIG), folder / "backbone.pt")
    Image.fromarray(rings(333, 500, phase=1.0)).save(folder / "1.jpg", quality=95)
    Image.fromarray(rings(480, 270, phase=3.0)).save(folder / "2.jpg", quality=95)
    write_video(folder / "1.mp4", frames=64, height=128, width=160)
    write_video(folder / "2.mp4", frames=20, height=120, width=214)
    shutil.rmtree(folder / "vlm", ignore_errors=True)
    write_vlm(folder / "vlm", small_tower())
    print(f"{folder}: backbone.pt, 1.jpg, 2.jpg, 1.mp4, 2.mp4, vlm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
