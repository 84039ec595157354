# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Converts a model folder back: packing to dense, or either to a pretraining checkpoint.

    python conversion/convert_back.py packing --to dense --output dense
    python conversion/convert_back.py dense --to source --output backbone.pt

A checkpoint is written as .pt or .safetensors, by the ending of --output. It holds no configuration, so what its
weights cannot tell is printed: the number of attention heads and the epsilons.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import safetensors.torch  # noqa: E402
import torch  # noqa: E402

from conversion.checkpoints.checkpoint import CheckpointError, read_checkpoint  # noqa: E402
from conversion.checkpoints.convert import converted_state_dict  # noqa: E402
from conversion.checkpoints.rename_tables import table_between  # noqa: E402
from conversion.checkpoints.source_config import Source, read_source, refuse_tower  # noqa: E402
from conversion.command_line import add_output_arguments, check_verdict, run_conversion  # noqa: E402
from conversion.common.arguments import ArgumentParser  # noqa: E402
from conversion.common.files import appearing_when_complete  # noqa: E402
from conversion.verification.verify import VerificationError, VerificationRequest, verify_folder  # noqa: E402


SUFFIXES = (".pt", ".pth", ".safetensors")


def write_checkpoint(options: argparse.Namespace) -> None:
    """Writes the pretraining checkpoint of a model folder, verified unless that is skipped.

    Raises:
        CheckpointError: if the folder cannot be read, or the output is in the way.
        VerificationError: if the oracle on the written file and the folder's model disagree.
    """
    output = options.output
    if output.suffix not in SUFFIXES:
        raise CheckpointError(f"--output {output}: expected a file that ends in {', '.join(SUFFIXES)}.")
    if options.dtype is not None:
        raise CheckpointError("--dtype is for --to dense; a checkpoint gets the bytes of the folder's weights.")
    if output.exists() and not options.overwrite:
        raise CheckpointError(f"{output} exists. Choose another name, remove it, or pass --overwrite.")
    folder = read_source(options.weights, options.revision)
    config = folder.config
    refuse_tower(config, "a pretraining checkpoint has no configuration to say so")
    weights = converted_state_dict(folder.checkpoint, table_between(folder.checkpoint.layout, "source"), config)
    output.parent.mkdir(parents=True, exist_ok=True)
    with appearing_when_complete(output) as beside:
        if output.suffix == ".safetensors":
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, beside)
        else:
            torch.save({name: tensor.clone() for name, tensor in weights.items()}, beside)
        if not options.skip_verification:
            request = VerificationRequest(
                folder=Path(options.weights),
                source=Source(read_checkpoint(beside), config),
                converted=folder.checkpoint,
                time_budget=options.time_budget,
            )
            check_verdict(verify_folder(request), options.weights)
    print(
        f"{output}: {len(weights)} tensors; {config.num_attention_heads} attention heads, norm_eps {config.norm_eps}, "
        f"head_norm_eps {config.head_norm_eps}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("weights", metavar="FOLDER", help="dense or packing model folder")
    parser.add_argument("--to", choices=("dense", "source"), required=True)
    parser.add_argument("--output", type=Path, required=True, help="model folder (dense) or checkpoint file (source)")
    add_output_arguments(parser)
    options = parser.parse_args(arguments)
    if options.to == "dense":
        options.output_dir = options.output
        return run_conversion(options, layout="dense", source_layout="packing")
    try:
        write_checkpoint(options)
    except VerificationError as error:
        print(f"error: {error}\n{options.output} was not made.", file=sys.stderr)
        return 1
    except (CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
