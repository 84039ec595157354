# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of two images and a clip from one forward pass of a packing model, at native resolution.

    python examples/quickstart.py --model user/model@COMMIT --image1 1.jpg --image2 2.jpg --video 1.mp4

Without options it takes what `make demo` leaves in demo_output/. The code of the model is executed.
"""

import argparse

import torch
from transformers import AutoModel, AutoProcessor


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, file in {"model": "packing", "image1": "1.jpg", "image2": "2.jpg", "video": "1.mp4"}.items():
    parser.add_argument(f"--{name}", default=f"./demo_output/{file}", help="default: %(default)s")
parser.add_argument("--revision", help="commit of the model, when it is a repo")
options = parser.parse_args()

name, _, pinned = options.model.partition("@")
source = {"revision": pinned or options.revision, "trust_remote_code": True}
processor = AutoProcessor.from_pretrained(name, **source)
model = AutoModel.from_pretrained(name, **source).eval()
inputs = processor(images=[options.image1, options.image2], videos=[options.video], num_frames=8)
with torch.inference_mode():
    output = model(**inputs, output_hidden_states=True)

second_to_last = processor.split_features(output.hidden_states[-2], inputs["grid_thw"])
for label, features in zip(("image1", "image2", "video"), second_to_last, strict=True):
    print(f"{label}: {tuple(features.shape)}  (frames, rows, columns, channels)")
first, second, _ = output.pooler_output  # (C,) each
print(f"cosine of the pooled images: {torch.cosine_similarity(first, second, dim=0):.4f}")
