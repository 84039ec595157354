# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Processor of LLaVA-ViT: one call for images, videos or both; its output goes into `model(**inputs)`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

# Out of a local folder transformers 4 fetches only the files that this one imports itself, so all are named here.
from .codec_llava_vit import codec_scores, codec_selection
from .collation_llava_vit import collate
from .decoding_llava_vit import BACKENDS  # noqa: F401
from .grid_llava_vit import split_features
from .image_processing_llava_vit import LlavaViTImageProcessor
from .pixels_llava_vit import pixel_table  # noqa: F401
from .settings_llava_vit import LlavaViTSettings  # noqa: F401
from .video_processing_llava_vit import LlavaViTVideoProcessor, decode_video


class LlavaViTProcessor(ProcessorMixin):
    """Images and videos to model inputs. There is no tokenizer.

    Args:
        image_processor: a `LlavaViTImageProcessor`; it holds all settings, those for videos too.
    """

    attributes = ["image_processor"]
    if not hasattr(ProcessorMixin, "get_attributes"):
        # transformers 4 asks for it; transformers 5 warns about it at every load.
        image_processor_class = "AutoImageProcessor"

    def __init__(self, image_processor: LlavaViTImageProcessor):
        super().__init__(image_processor)

    # Of packed features, one array per sample.
    split_features = staticmethod(split_features)
    codec_scores = staticmethod(codec_scores)
    decode_video = staticmethod(decode_video)

    @property
    def video_processor(self) -> LlavaViTVideoProcessor:
        """The video part, with the image processor's settings."""
        return LlavaViTVideoProcessor(self.image_processor)

    @property
    def model_input_names(self) -> list[str]:
        """Keys of the output."""
        names = self.image_processor.model_input_names
        return names if self.image_processor.packing else [*names, "patch_positions"]

    def __call__(
        self,
        images: Any = None,
        videos: Any = None,
        text: str | None = None,
        num_frames: int | str | None = None,
        video_backend: str | None = None,
        return_metadata: bool = False,
        return_tensors: str | None = "pt",
        keep: Any = None,
        scores: Any = None,
        top_k: int | Sequence[int] | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Prepares images, videos or both; in the output images come first, then videos.

        Args:
            images: one image or a list: PIL, numpy or torch `(H, W)`, `(H, W, C)`, `(C, H, W)`, path or URL.
            videos: one video or a list of them: path of a file or of a folder of frames, a list of frames, or an array
                `(T, H, W, C)` or `(T, C, H, W)`. Paths of images are frames: `["0.png", "1.png"]` is one clip of two,
                and `[["0.png", "1.png"], "a.mp4"]` are two videos.
            text: refused unless empty.
            num_frames: frames sampled from every video, or `"all"`. Default: as saved.
            video_backend: `"decord"`, `"pyav"`, `"torchcodec"` or `"opencv"`. `None`: decord where it is installed,
                PyAV otherwise and for files that decord cannot read.
            return_metadata: add `metadata`, a list of one dict per sample: kind, source, height and width before
                preprocessing, `grid_thw`, `temporal_positions`, `kept_patches` where some were chosen, and for
                videos `frame_indices`, `timestamps` (seconds), `decoder`, `fps`, `total_frames`; of codec scores the
                settings and `codec_way`, where the vectors are from. It is not an input of the model.
            return_tensors: `"pt"` (also `None`) or `"np"`.
            keep: keeps some patches only (codec-selected ones, say): one boolean mask per sample, images first, over
                its `(t, h, w)` patches or flat; `None` for a sample that keeps all.
            scores: in place of `keep`, one array of numbers per sample, shaped likewise; the highest `top_k` patches
                are kept. Or `"codec"`: those of videos that their codec finds most motion and residual in, as
                `codec_score`, `keep_first_frame` and `block` say; images keep all.
            top_k: with `scores`, how many patches a sample keeps, or one number per sample.
            kwargs: any argument of [`LlavaViTSettings`], for this call.

        Returns:
            Packing: `pixel_values` `(total_tokens, 3 * P * P)`, `grid_thw` `(samples, 3)`, `patch_positions`
            `(total_tokens, 3)`, `cu_seqlens` `(samples + 1,)` int32 and `max_seqlen`, an int.
            Dense: `pixel_values` `(B, 3, H, W)` for images; for videos `(B, 3, T, H, W)` and `patch_positions`
            `(B, T * h * w, 3)`.
            With `keep` or `scores`, packing has the rows, positions and `cu_seqlens` of the kept patches, and
            `grid_thw` of the whole samples; dense has whole `pixel_values`, with `visible_indices` `(B, K)` and
            `patch_positions` `(B, K, 3)`, and needs the same `K` of all samples. `max_tokens` counts whole samples.

        Raises:
            FileNotFoundError, TypeError, ValueError: as `LlavaViTImageProcessor.preprocess` and `decode_video`; and
                for images and videos in one dense call.
        """
        if text:
            raise ValueError("text: this processor has no tokenizer; pass images and videos only.")
        if images is None and videos is None:
            raise ValueError("Pass images, videos or both; found neither.")
        settings = self.image_processor.settings(num_frames=num_frames, **kwargs)
        samples = [] if images is None else self.image_processor.prepare(images, settings)
        if videos is not None:
            samples += self.video_processor.prepare(videos, settings, video_backend)
        if isinstance(scores, str):
            if scores != "codec" or keep is not None:
                raise ValueError(f'scores must be arrays or "codec", without keep; found {scores!r}.')
            keep, scores, top_k = codec_selection(videos, samples, settings, top_k), None, None
        return collate(samples, settings, return_tensors, return_metadata, keep=keep, scores=scores, top_k=top_k)

    def to_dict(self, *args, **kwargs) -> dict[str, Any]:
        """The contents of `processor_config.json`: the image processor's settings stay in its own file."""
        output = super().to_dict(*args, **kwargs)
        output.pop("image_processor", None)
        return output

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Saves `preprocessor_config.json` and `processor_config.json`, the same under transformers 4 and 5.

        Args:
            save_directory: made if missing.
            push_to_hub: also upload to `repo_id` (default: the folder's name); `kwargs` go to `push_to_hub`.
        """
        super().save_pretrained(save_directory)
        # transformers 5 writes no preprocessor_config.json, which transformers 4 and AutoImageProcessor read;
        # transformers 4 writes processor_config.json only for remote code, so an older one would survive.
        files = self.image_processor.save_pretrained(save_directory)
        processor_file = os.path.join(save_directory, "processor_config.json")
        self.to_json_file(processor_file)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return [*files, processor_file]
