# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The conformance kit: right implementations pass, wrong ones do not and are told why, and it stands alone."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from conversion import make_conformance_kit
from conversion.kit import check, write_kit
from conversion.kit.cases import CHECKPOINTS, kit_cases, kit_weights
from tests.conversion.kit.client_faults import KNOWN, PAIRS, UNKNOWN, changed_client


SOURCES = Path(check.__file__).parent
CLIENT = SOURCES / "clients" / "numpy_client.py"
STANDALONE = (Path(check.__file__), *sorted((SOURCES / "clients").glob("*.py")))
MOST_BYTES = 20e6
# Of the known faults these are made in the client; the others need another shape of program.
FAULTS_IN_CLIENT, LEAST_NAMED = 20, 18

pytestmark = [pytest.mark.long, pytest.mark.once]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "kit"
    assert make_conformance_kit.main(["--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def kit(folder) -> check.Kit:
    return check.Kit(folder)


@pytest.fixture(scope="module")
def right(folder) -> dict[str, np.ndarray]:
    """What the NumPy client puts out."""
    return changed_client(CLIENT).run_kit(folder)


@pytest.fixture
def judge(kit, tmp_path):
    """Checks outputs as a file."""

    def judge(outputs: dict[str, np.ndarray], **options) -> check.Report:
        np.savez(tmp_path / "outputs.npz", **outputs)
        return check.check(tmp_path / "outputs.npz", kit, **options)

    return judge


def rounded(array: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype).float().numpy()


def rounding_client(folder: Path, dtype: torch.dtype):
    """The outputs of the client with weights and the result of every function rounded to a dtype."""
    module = changed_client(CLIENT)
    for name in ("linear", "layer_norm", "rms_norm", "attend", "rotate", "gelu", "patchify"):
        function = getattr(module, name)
        setattr(module, name, lambda *args, function=function: rounded(function(*args), dtype))
    load = module.load_file
    module.load_file = lambda path: {
        name: rounded(array, dtype) if "backbone" in str(path) else array for name, array in load(path).items()
    }
    return module.run_kit(folder)


def eight_bit_client(folder: Path):
    """The outputs of the client with 8-bit weights, by row, and 8-bit inputs, by token, in every linear map."""
    module = changed_client(CLIENT)

    def in_8_bits(rows: np.ndarray) -> np.ndarray:
        scale = np.abs(rows).max(-1, keepdims=True) / 127
        return np.rint(rows / scale) * scale

    module.linear = lambda x, weight, bias: in_8_bits(x) @ in_8_bits(weight).T + bias
    return module.run_kit(folder)


class TestRight:
    def test_the_numpy_client_passes(self, judge, right):
        report = judge(right)
        assert report.passed and report.diagnoses == () and report.kept() == list(check.BOUNDS)
        assert len(report.cases()) == len(CHECKPOINTS) * len(kit_cases(14))
        assert [row.array for row in report.cases()["layer_norm", "pack"]] == [
            *("embeddings", *(f"hidden_states[{layer}]" for layer in range(4)), "last_hidden_state", "pooled"),
        ]

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
    def test_each_dtype_passes_and_is_no_further_off_than_the_readme_says(self, folder, judge, right, dtype):
        outputs = right if dtype == "float32" else eight_bit_client(folder) if dtype == "int8" else None
        report = judge(outputs or rounding_client(folder, getattr(torch, dtype)), dtype=dtype)
        assert report.passed, report.text()
        rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", readme(), re.MULTILINE)
        stated = {name: tuple(map(float, numbers)) for name, *numbers in rows}
        assert {name: numbers[:2] for name, numbers in stated.items()} == check.BOUNDS
        worst = min(row.min_cosine for row in report.rows), max(row.relative_error for row in report.rows)
        assert worst[0] >= stated[dtype][2] and worst[1] <= stated[dtype][3], worst

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_the_packing_model_passes(self, folder, judge, dtype):
        assert judge(packing_outputs(folder, getattr(torch, dtype)), dtype=dtype).passed

    def test_float16_outputs_are_taken(self, judge, right):
        outputs = {name: array.astype(np.float16) for name, array in right.items()}
        assert judge(outputs, dtype="float16").passed and not judge(outputs).passed


def packing_outputs(folder: Path, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The kit's packing folders over the kit's patches."""
    from transformers import AutoModel

    outputs = {}
    for checkpoint in CHECKPOINTS:
        model = AutoModel.from_pretrained(folder / checkpoint / "packing", trust_remote_code=True, dtype=dtype).eval()
        inputs = load_file(folder / checkpoint / "inputs.safetensors")
        for case in kit_cases(1):
            given = {name: torch.from_numpy(inputs[f"{case}/{name}"]) for name in ("patches", *PACK)}
            lengths = given["cu_seqlens"].diff()
            with torch.no_grad():
                patches = given["patches"].to(dtype)
                output = model(
                    patches,
                    grid_thw=given["grid_thw"],
                    patch_positions=given["positions"],
                    cu_seqlens=given["cu_seqlens"],
                    max_seqlen=int(lengths.max()),
                    output_hidden_states=True,
                )
                embeddings = model.get_input_embeddings()(patches)
            arrays = (embeddings, torch.stack(output.hidden_states), output.last_hidden_state, output.pooler_output)
            for name, array in zip(check.ARRAYS, arrays, strict=True):
                outputs[f"{checkpoint}/{case}/{name}"] = array.float().numpy()
    return outputs


PACK = ("positions", "grid_thw", "cu_seqlens")


class TestFaults:
    def test_faults_in_the_numpy_client_are_named(self, folder, judge):
        named = {}
        for name, change in KNOWN.items():
            report = judge(changed_client(CLIENT, change).run_kit(folder))
            assert not report.passed, name
            (diagnosis,) = report.diagnoses
            named[name] = diagnosis.fault if diagnosis.near else None
        assert len(named) >= FAULTS_IN_CLIENT
        wrong = {name: found for name, found in named.items() if name != found}
        assert len(named) - len(wrong) >= LEAST_NAMED * len(named) / FAULTS_IN_CLIENT, wrong
        assert not wrong, wrong

    def test_the_readme_shows_what_is_printed(self, folder, judge):
        printed = judge(changed_client(CLIENT, KNOWN["rotate_half"]).run_kit(folder)).text()
        shown = " ".join(re.search(r"ends like this:\n\n(.*?)\n\n", readme(), re.DOTALL).group(1).split())
        assert shown.startswith("FAIL as float32") and " ".join(printed.split()).endswith(shown)

    @pytest.mark.parametrize("pair", PAIRS, ids="+".join)
    def test_of_two_faults_one_at_least_is_named(self, folder, judge, pair):
        report = judge(changed_client(CLIENT, *(KNOWN[name] for name in pair)).run_kit(folder))
        assert not report.passed
        found = {part for diagnosis in report.diagnoses for part in diagnosis.fault.split("+")}
        assert found and found <= set(pair) and all(diagnosis.near for diagnosis in report.diagnoses)

    @pytest.mark.parametrize("name", UNKNOWN)
    def test_an_unknown_fault_does_not_pass_and_is_not_given_a_name(self, folder, judge, name):
        report = judge(changed_client(CLIENT, UNKNOWN[name]).run_kit(folder))
        assert not report.passed and not any(diagnosis.near for diagnosis in report.diagnoses)
        assert "none of the known faults" in report.text()

    def test_a_fault_is_named_in_bfloat16_too(self, kit, folder, judge, monkeypatch):
        """What rounding to bfloat16 adds does not hide which fault it is."""
        outputs = changed_client(CLIENT, KNOWN["rotate_half"]).run_kit(folder)
        noisy = {name: rounded(array, torch.bfloat16) for name, array in outputs.items()}
        (diagnosis,) = judge(noisy, dtype="bfloat16").diagnoses
        assert diagnosis.fault == "rotate_half" and diagnosis.near
        assert diagnosis.cosine > 0.999 > 0.9 > diagnosis.right_cosine

    def test_a_part_of_the_outputs_names_a_fault(self, folder, judge):
        outputs = changed_client(CLIENT, KNOWN["height_width_swapped"]).run_kit(folder)
        report = judge(outputs, checkpoints=["rms_norm"], cases=["image"], arrays=["pooled"])
        assert [diagnosis.fault for diagnosis in report.diagnoses] == ["height_width_swapped"]
        assert report.first_departing().keys() == {("rms_norm", "image")}

    def test_what_these_outputs_cannot_tell_apart_is_said(self, folder, judge):
        """The pooled vector is the same whether the last norm is left out or only the head goes without."""
        outputs = changed_client(CLIENT, KNOWN["no_post_norm"]).run_kit(folder)
        (diagnosis,) = judge(outputs, arrays=["pooled"]).diagnoses
        assert {diagnosis.fault, *diagnosis.alike} == {"no_post_norm", "pooled_before_post_norm"}
        assert f"these outputs cannot tell it from {diagnosis.alike[0]}" in diagnosis.text()

    def test_where_nothing_is_known_nothing_is_named(self, folder, judge):
        outputs = changed_client(CLIENT, KNOWN["time_zeroed"]).run_kit(folder)
        report = judge(outputs, cases=["clip_64"])
        assert not report.passed and report.diagnoses == () and "no fault to compare with" in report.text()

    def test_the_first_layer_that_departs_is_named(self, judge, right, kit):
        outputs = right | {"layer_norm/clip/hidden_states": right["layer_norm/clip/hidden_states"].copy()}
        outputs["layer_norm/clip/hidden_states"][2, 5] *= 1.01
        report = judge(outputs)
        assert {key: row.array for key, row in report.first_departing().items()} == {
            ("layer_norm", "clip"): "hidden_states[2]"
        }
        assert "FAIL, first at hidden_states[2]" in report.text()

    def test_small_faults_say_which_dtype_they_would_pass_in(self, folder, judge):
        report = judge(changed_client(CLIENT, KNOWN["tanh_gelu"]).run_kit(folder))
        assert "if it computes in that, say --dtype float16" in report.text()


class TestBadInput:
    @pytest.fixture
    def refused(self, judge):
        def refused(outputs, message, **options):
            with pytest.raises(check.InputError, match=message):
                judge(outputs, **options)

        return refused

    def test_names(self, right, refused):
        fewer = dict(list(right.items())[1:])
        refused(
            fewer, "lacks 1 of 72 arrays: layer_norm/image/embeddings. Add them, or choose others with --checkpoint"
        )
        refused(right | {"layernorm/image/pooled": np.zeros(1)}, "no name of the kit; did you mean layer_norm/image/")
        refused({"x": np.zeros(1)}, "x is no name of the kit; names are like layer_norm/image/embeddings")
        refused(right, "--case imgae is unknown, expected one of image, native", cases=["imgae"])

    def test_dtypes(self, right, refused):
        name = "layer_norm/image/pooled"
        refused(right | {name: right[name].astype(np.float64)}, f"{name} is float64, expected float32 or float16")
        refused(right | {name: right[name].astype(np.int32)}, f"{name} is int32, expected float32 or float16")
        refused(right | {name: np.array([None])}, "cannot be read")

    def test_shapes_and_values_that_are_none_fail(self, judge, right):
        name = "layer_norm/image/last_hidden_state"
        report = judge(right | {name: right[name][None]})
        assert not report.passed and f"{name}: shape (1, 20, 64), expected (20, 64): drop the batch" in report.text()
        report = judge(right | {name: right[name][:-1]})
        assert not report.passed and f"{name}: shape (19, 64), expected (20, 64)" in report.text()
        broken = right[name].copy()
        broken[3, 4], broken[5, 6] = np.nan, np.inf
        report = judge(right | {name: broken})
        assert not report.passed and f"{name}: 2 of 1280 values are NaN or infinite" in report.text()
        assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["verdict"] == "FAIL"

    def test_files(self, folder, right, tmp_path, capsys):
        whole, cut, one, text = (tmp_path / name for name in ("whole.npz", "cut.npz", "one.npy", "text.npz"))
        np.savez(whole, **right)
        cut.write_bytes(whole.read_bytes()[:-1000])
        np.save(one, np.zeros(3))
        text.write_text("no arrays")
        run = main_of(folder)
        for path, message in (
            (cut, "cut.npz cannot be read"),
            (one, "one.npy holds one array; expected an NPZ file"),
            (text, "text.npz cannot be read"),
            (tmp_path / "none.npz", "none.npz does not exist"),
            (tmp_path, "cannot be read"),
        ):
            assert run([str(path)]) == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ") and message in error and error.count("\n") == 1

    def test_a_damaged_byte_is_no_pass(self, kit, right, tmp_path):
        np.savez(tmp_path / "outputs.npz", **right)
        damaged = bytearray((tmp_path / "outputs.npz").read_bytes())
        damaged[len(damaged) // 2] ^= 0xFF
        (tmp_path / "outputs.npz").write_bytes(damaged)
        with pytest.raises(check.InputError, match="cannot be read"):
            check.check(tmp_path / "outputs.npz", kit)

    def test_a_kit_that_is_none(self, folder, tmp_path, right):
        with pytest.raises(check.InputError, match=r"kit.json cannot be read .* must stay in its folder"):
            check.Kit(tmp_path)


def main_of(folder: Path):
    """`main` of the check.py in a kit."""
    spec = importlib.util.spec_from_file_location("check_of_the_kit", folder / "check.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.main


class TestStandingAlone:
    def test_only_the_standard_library_numpy_and_safetensors_are_imported(self):
        allowed = sys.stdlib_module_names | {"numpy", "safetensors"}
        more = {"onnx_client.py": {"onnxruntime", "numpy_client"}, "export_dense.py": {"torch", "transformers"}}
        for path in STANDALONE:
            # Of Python 3.9, which ruff.toml also names for these files.
            tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
            nodes = list(ast.walk(tree))
            imported = {
                alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names
            }
            imported |= {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
            assert imported <= allowed | more.get(path.name, set()), path

    def test_the_commands_of_its_readme_run_without_the_project(self, folder, tmp_path):
        """As files of their own, in a process that cannot import torch or this project."""
        without = tmp_path / "without"
        for name in ("torch", "transformers", "conversion", "llava_vit_hf"):
            (without / name).mkdir(parents=True)
            (without / name / "__init__.py").write_text("raise ImportError")
        lines = "".join(re.findall(r"```sh\n(.*?)```", readme(), re.DOTALL)).splitlines()
        assert len(lines) == 2
        for line in lines:
            words = line.split("#")[0].replace("outputs.npz", str(tmp_path / "outputs.npz")).split()
            command = [sys.executable, *words[1:]]
            environment = {"PYTHONPATH": str(without), "PATH": ""}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        assert "PASS as float32" in done.stdout

    def test_json_and_picture(self, folder, right, tmp_path, capsys):
        outputs, picture = tmp_path / "outputs.npz", tmp_path / "errors.svg"
        np.savez(outputs, **changed_client(CLIENT, KNOWN["epsilon"]).run_kit(folder))
        assert main_of(folder)([str(outputs), "--json", "--svg", str(picture)]) == 1
        report = json.loads(capsys.readouterr().out)
        assert report["verdict"] == "FAIL" and report["diagnoses"][0]["fault"] == "epsilon"
        assert report["first_departing"]["layer_norm/image"] == "hidden_states[0]"
        root = xml.etree.ElementTree.parse(picture).getroot()
        lines = [element for element in root.iter() if element.tag.endswith("polyline")]
        assert len(lines) == len(CHECKPOINTS) * len(kit_cases(1))
        heights = [float(point.split(",")[1]) for point in lines[0].get("points").split()]
        # The embeddings are right; from the first norm on the error is larger, which is higher up.
        assert heights[0] > 200 > max(heights[1:])


class TestTheKit:
    def test_size_files_and_hashes(self, folder, kit):
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        assert sum(path.stat().st_size for path in files.values()) <= MOST_BYTES
        stated = kit.description["sha256"]
        assert stated == {name: write_kit.sha256_of_file(files[name]) for name in files.keys() - {"kit.json"}}
        assert {"README.md", "encoder.md", "check.py", "layer_norm/packing/modeling_llava_vit_packing.py"} < set(
            stated
        )
        assert len([name for name in kit.faults if "+" not in name]) >= 20

    def test_every_fault_shows_where_its_cases_can_show_it(self, folder, kit):
        for checkpoint in CHECKPOINTS:
            places = {name.split("/", 1)[0] for name in load_file(folder / checkpoint / "faults.safetensors")}
            # One head has no order of heads, and C ** -0.5 is D ** -0.5.
            hidden = {"qkv_by_head", "scaled_by_width"} if checkpoint == "rms_norm" else set()
            assert places == kit.faults.keys() - hidden

    def test_right_outputs_are_float32_of_the_oracle_and_finite(self, folder):
        for checkpoint in CHECKPOINTS:
            for array in load_file(folder / checkpoint / "expected.safetensors").values():
                assert array.dtype == np.float32 and np.isfinite(array).all()

    def test_weights_are_exact_arithmetic(self):
        """The first value of a tensor and the sum of all bits are written here too."""
        weights = kit_weights(CHECKPOINTS["layer_norm"])
        assert weights["conv1.weight"].flatten()[0].item() == -0.0022194653283804655
        bits = sum(int(tensor.view(torch.int32).long().sum()) for tensor in weights.values())
        assert bits == -7584608082955

    def test_differences_are_named_by_array(self, folder, tmp_path, capsys):
        other = tmp_path / "other"
        write_kit.shutil.copytree(folder, other)
        assert write_kit.differences(folder, other) == []
        arrays = load_file(other / "rms_norm" / "expected.safetensors")
        arrays["pack/pooled"][1, 2] += 0.5
        write_kit.save_file(
            {name: torch.from_numpy(array) for name, array in arrays.items()},
            other / "rms_norm" / "expected.safetensors",
        )
        (other / "check.py").unlink()
        assert write_kit.differences(folder, other) == [
            f"check.py is only in {folder}",
            "rms_norm/expected.safetensors: pack/pooled: 1 of 480 values differ, by 5.0e-01 at most",
        ]

    def test_arguments_that_cannot_be(self, folder, tmp_path, capsys):
        assert make_conformance_kit.main(["--output_dir", str(folder)]) == 2
        assert "exists" in capsys.readouterr().err
        assert make_conformance_kit.main(["--output_dir", str(tmp_path / "x"), "--compare", str(tmp_path / "y")]) == 2
        assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_onnx_runtime_passes(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    clients = folder / "clients"
    for words in (
        (clients / "export_dense.py", tmp_path),
        (clients / "onnx_client.py", tmp_path, tmp_path / "outputs.npz"),
        (folder / "check.py", tmp_path / "outputs.npz"),
    ):
        done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS as float32" in done.stdout


def readme() -> str:
    return (SOURCES / "README.md").read_text(encoding="utf-8")
