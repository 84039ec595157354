# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""LLaVA-ViT for transformers: a dense and a packing vision transformer with one set of weights.

Importing this package registers its classes, so that `AutoModel`, `AutoProcessor` and their relatives load both models
without `trust_remote_code`, and so that saved folders carry the code they need.
"""

from transformers import AutoConfig, AutoModel, AutoProcessor

# Some 5.x put a placeholder at the top level where torchvision is missing; the class itself does not need it.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .codec_llava_vit import codec_scores
from .configuration_llava_vit import LlavaViTConfig, LlavaViTPackingConfig
from .image_processing_llava_vit import LlavaViTImageProcessor
from .modeling_llava_vit import LlavaViTModel
from .modeling_llava_vit_packing import LlavaViTPackingModel
from .processing_llava_vit import LlavaViTProcessor


__version__ = "0.1.0"

for _config, _model in ((LlavaViTConfig, LlavaViTModel), (LlavaViTPackingConfig, LlavaViTPackingModel)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoImageProcessor.register(_config, slow_image_processor_class=LlavaViTImageProcessor, exist_ok=True)
    AutoProcessor.register(_config, LlavaViTProcessor, exist_ok=True)
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModel")
LlavaViTImageProcessor.register_for_auto_class()
LlavaViTProcessor.register_for_auto_class()

__all__ = [
    "LlavaViTConfig",
    "LlavaViTImageProcessor",
    "LlavaViTModel",
    "LlavaViTPackingConfig",
    "LlavaViTPackingModel",
    "LlavaViTProcessor",
    "codec_scores",
]
