# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of two images and a clip from one forward pass of a packing model, at native resolution.

    python examples/quickstart.py --model user/model --revision COMMIT --image1 1.jpg --image2 2.jpg --video 1.mp4

Without options it takes the model and the media that examples/README.md makes. The code of the model is executed
(`trust_remote_code`): use folders you made, or repos you trust, at a pinned --revision.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from conversion.common.arguments import ArgumentParser  # noqa: E402


DEMO = {"model": "packing", "image1": "1.jpg", "image2": "2.jpg", "video": "1.mp4"}


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    for name, file in DEMO.items():
        # A whole path: transformers would take demo_output/packing for a repo where there is no such folder.
        parser.add_argument(f"--{name}", default=str(ROOT / "demo_output" / file), help=f"default demo_output/{file}")
    parser.add_argument("--revision", help="commit of the model, when it is a repo")
    options = parser.parse_args(arguments)
    if options.model == parser.get_default("model") and not Path(options.model).is_dir():
        parser.error(f"there is no {options.model}: pass --model, or make it as examples/README.md says")

    source = {"trust_remote_code": True, "revision": options.revision}
    processor = AutoProcessor.from_pretrained(options.model, **source)
    model = AutoModel.from_pretrained(options.model, **source).eval()
    inputs = processor(images=[options.image1, options.image2], videos=[options.video], num_frames=8)
    with torch.inference_mode():
        output = model(**inputs, output_hidden_states=True)

    second_to_last = output.hidden_states[-2]  # (tokens of all three, C)
    for name, features in zip(
        ("image1", "image2", "video"), processor.split_features(second_to_last, inputs["grid_thw"]), strict=True
    ):
        print(f"{name}: {tuple(features.shape)}  (frames, rows, columns, channels)")
    first, second, _ = output.pooler_output  # (C,) each
    print(f"cosine of the pooled images: {torch.cosine_similarity(first, second, dim=0):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
