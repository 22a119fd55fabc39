"""pysel/sae/formats.py: files of the libraries compute what the libraries computed, and they can read ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pysel
from pysel.sae import TopKSAE, load_sae, save_sae

DATA = Path(__file__).parent / "data" / "sae"
WRITTEN = ["sparsify", "sparsify-bfloat16", "saelens-topk", "saelens-topk-folded", "saelens-abstopk"]
FORMATS = {"sparsify": "sae.safetensors", "saelens": "sae_weights.safetensors"}


def dense(values: Tensor, indices: Tensor, num_factors: int) -> Tensor:
    return values.new_zeros(len(values), num_factors).scatter(1, indices, values)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_librarys_model_computes_what_the_library_computed(name: str) -> None:
    sae = load_sae(DATA / name)
    expected = load_file(DATA / name / "expected.safetensors")
    half = name.endswith("bfloat16")
    assert (sae.in_features, sae.num_factors, sae.k) == (6, 10, 3) and not sae.training
    assert sae.bias.dtype == (torch.bfloat16 if half else torch.float32)
    tolerance = {"rtol": 0.02, "atol": 0.05} if half else {"rtol": 1e-5, "atol": 1e-5}
    with torch.no_grad():
        reconstruction, values, indices = sae(expected["x"].to(sae.bias.dtype))
    torch.testing.assert_close(dense(values, indices, 10), expected["activations"], **tolerance)
    torch.testing.assert_close(reconstruction, expected["reconstruction"], **tolerance)


def test_folding_is_needed_and_tested() -> None:
    """The folded fixture's own numbers differ from those of the same weights without its flags."""
    plain, folded = (load_file(DATA / f"saelens-topk{s}" / "sae_weights.safetensors") for s in ("", "-folded"))
    assert all(torch.equal(plain[name], folded[name]) for name in plain)
    a, b = (load_file(DATA / f"saelens-topk{s}" / "expected.safetensors") for s in ("", "-folded"))
    assert float((a["reconstruction"] - b["reconstruction"]).abs().max()) > 0.1


def model(activation: str = "relu", **options: Any) -> TopKSAE:
    sae = TopKSAE(6, 10, 3, key=pysel.key(1), activation=activation, aux_k=2, aux_weight=0.5, dead_after=77, **options)
    with torch.no_grad():
        sae.encoder += 0.3
        sae.encoder_bias += torch.linspace(-0.2, 0.2, 10)
        sae.bias += torch.arange(6)
        sae.spread.fill_(2.5)
    return sae


CASES = [("sparsify", "relu"), ("saelens", "relu"), ("saelens", "abs")]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("format", "activation"), CASES)
def test_nothing_is_lost_between_saving_and_loading(format: str, activation: str, tied: bool, tmp_path: Path) -> None:
    sae = model(activation, tied=tied, revive="dead")
    save_sae(sae, tmp_path / "a" / "b", format)
    again = load_sae(tmp_path / "a" / "b")
    for name, value in sae.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    options = ("in_features", "num_factors", "k", "activation", "tied", "revive", "aux_k", "aux_weight", "dead_after")
    assert all(getattr(sae, name) == getattr(again, name) for name in options)
    assert len(list(again.parameters())) == (3 if tied else 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", FORMATS)
def test_dtypes_are_kept_or_changed_on_demand(format: str, dtype: torch.dtype, tmp_path: Path) -> None:
    sae = model().to(dtype)
    save_sae(sae, tmp_path, format)
    assert torch.equal(load_sae(tmp_path).encoder, sae.encoder)
    assert torch.equal(load_sae(tmp_path, dtype=torch.float32).encoder, sae.encoder.float())
    assert load_sae(tmp_path, device="meta").encoder.device.type == "meta"


def test_saelens_before_version_6(tmp_path: Path) -> None:
    shutil.copytree(DATA / "saelens-topk", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "cfg.json").read_text())
    old = {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    old |= {"d_in": 6, "d_sae": 10, "dtype": "torch.float32", "finetuning_scaling_factor": False}
    old |= {"normalize_activations": "none", "apply_b_dec_to_input": True, "hook_point": "blocks.0.hook_resid_pre"}
    assert config["architecture"] == "topk"
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file(weights | {"scaling_factor": torch.ones(10)}, tmp_path / "sae_weights.safetensors")
    for a, b in zip(load_sae(tmp_path).parameters(), load_sae(DATA / "saelens-topk").parameters(), strict=True):
        assert torch.equal(a, b)


def test_sparsify_with_signed_values_and_an_expansion_factor(tmp_path: Path) -> None:
    save_sae(model(), tmp_path, "sparsify")
    config = {"expansion_factor": 2, "num_latents": 0, "k": 3, "signed": True, "d_in": 5, "normalize_decoder": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    weights = {"encoder.weight": torch.ones(10, 5), "encoder.bias": torch.ones(10), "W_dec": torch.ones(10, 5)}
    save_file(weights | {"b_dec": torch.ones(5)}, tmp_path / "sae.safetensors")
    sae = load_sae(tmp_path)
    assert (sae.in_features, sae.num_factors, sae.activation) == (5, 10, "abs")


def edited(folder: Path, source: str, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(DATA / source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "cfg.json").read_text())
    change(config)
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("source", ["saelens-topk", "sparsify"])
def test_settings_that_a_file_lacks_are_the_librarys_defaults(source: str, tmp_path: Path) -> None:
    """All but the sizes, k and what says that it is a TopK model."""
    needed = {"d_in", "d_sae", "num_latents", "k", "architecture"}
    bare = edited(tmp_path, source, lambda c: [c.pop(name) for name in set(c) - needed])
    for a, b in zip(load_sae(bare).parameters(), load_sae(DATA / source).parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("saelens-jumprelu", {}, "architecture must be 'topk' or 'abstopk' to be a TopKSAE, got 'jumprelu'"),
        ("saelens-topk", {"architecture": "gated"}, "architecture must be .* got 'gated'"),
        ("saelens-topk", {"architecture": None}, "architecture must be .* got None"),
        ("saelens-topk", {"k": None}, "k must be a whole number of at least 1, got None"),
        ("saelens-topk", {"k": 11}, "k must be at most the number of units, 10, got 11"),
        ("saelens-topk", {"normalize_activations": "layer_norm"}, "normalize_activations must be 'none' .*layer_norm"),
        ("saelens-topk", {"normalize_activations": "expected_average_only_in"}, "normalize_activations"),
        ("saelens-topk", {"finetuning_scaling_factor": True}, "finetuning_scaling_factor must be False"),
        ("saelens-topk", {"d_in": 7}, r"W_enc must be \[7, 10\] of a floating-point dtype by cfg.json, got \[6, 10\]"),
        ("saelens-topk", {"d_sae": 0}, "d_sae must be a whole number of at least 1, got 0"),
        ("saelens-topk", {"metadata": {"pysel": {"aux_k": 99}}}, "the entry pysel is damaged: .*aux_k .* got 99"),
        ("saelens-topk", {"metadata": {"pysel": {"tied": True}}}, "tied, but they differ"),
        ("sparsify", {"activation": "groupmax"}, "activation must be 'topk' to be a TopKSAE, got 'groupmax'"),
        ("sparsify", {"transcode": True}, "transcode must be False"),
        ("sparsify", {"skip_connection": True}, "skip_connection must be False"),
        ("sparsify", {"k": 0}, "k must be a whole number of at least 1, got 0"),
        ("sparsify", {"k": "3"}, "k must be a whole number of at least 1, got '3'"),
        ("sparsify", {"num_latents": 12}, r"encoder.weight must be \[12, 6\].* got \[10, 6\]"),
    ],
)
def test_what_cannot_be_represented_is_refused(
    source: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    def apply(config: dict[str, Any]) -> None:
        config.update(change)

    with pytest.raises(ValueError, match=f"load_sae: .*{message}") as caught:
        load_sae(edited(tmp_path, source, apply))
    assert str(tmp_path) in str(caught.value)


def test_weights_that_are_missing_unknown_or_of_another_kind(tmp_path: Path) -> None:
    file = edited(tmp_path, "sparsify", lambda config: None) / "sae.safetensors"
    weights = load_file(file)
    skip = {"W_skip": torch.ones(6, 6)}
    for changed, message in (
        ({name: w for name, w in weights.items() if name != "W_dec"}, "must hold .*, got no W_dec"),
        (weights | skip, "got unknown W_skip"),
        ({"b_dec": weights["b_dec"]} | skip, "got no W_dec, encoder.bias, encoder.weight and unknown W_skip"),
        (weights | {"b_dec": torch.ones(6, dtype=torch.int64)}, "b_dec must be .* floating-point .* torch.int64"),
    ):
        save_file(changed, file)
        with pytest.raises(ValueError, match=message):
            load_sae(tmp_path)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere must hold cfg.json and either .* got no folder"):
        load_sae(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="got an empty folder"):
        load_sae(tmp_path)
    (tmp_path / "sae.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"got sae\.safetensors"):
        load_sae(tmp_path)
    shutil.copytree(DATA / "sparsify", tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / "sae.safetensors").read_bytes()
    for damage in (b"", whole[:100], whole[:-1], b"x" * 100):
        (tmp_path / "sae.safetensors").write_bytes(damage)
        with pytest.raises(ValueError, match=r"sae\.safetensors is not a safetensors file"):
            load_sae(tmp_path)
    (tmp_path / "sae.safetensors").write_bytes(whole)
    for text, message in (("{", "is not a JSON file"), ("[1]", "must hold an object, got a list")):
        (tmp_path / "cfg.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_sae(tmp_path)
    shutil.copy(DATA / "saelens-topk" / "sae_weights.safetensors", tmp_path)
    with pytest.raises(FileNotFoundError, match="either"):  # which of the two is meant?
        load_sae(tmp_path)


def test_bad_arguments_of_save_sae(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_sae: format must be sparsify or saelens, got 'onnx'"):
        save_sae(model(), tmp_path / "x", "onnx")
    with pytest.raises(ValueError, match='format "sparsify" has no activation "abs"'):
        save_sae(model("abs"), tmp_path / "x", "sparsify")
    assert not (tmp_path / "x").exists()


def test_sparsify_reads_ours(tmp_path: Path) -> None:
    """Runs where the library is installed: requirements-bench.txt."""
    sparsify = pytest.importorskip("sparsify")
    sae, x = model(), torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    save_sae(sae, tmp_path, "sparsify")
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path)
    values, indices, _ = theirs.encode(x)
    reconstruction, *codes = sae(x)
    torch.testing.assert_close(dense(values, indices, 10), dense(*codes, 10))
    torch.testing.assert_close(theirs.decode(values, indices), reconstruction)


@pytest.mark.parametrize("activation", ["relu", "abs"])
def test_saelens_reads_ours(activation: str, tmp_path: Path) -> None:
    """Runs where the library is installed; no requirements file asks for it."""
    sae_lens = pytest.importorskip("sae_lens")
    sae, x = model(activation), torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    save_sae(sae, tmp_path, "saelens")
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    activations = theirs.encode(x)
    reconstruction, *codes = sae(x)
    torch.testing.assert_close(activations, dense(*codes, 10))
    torch.testing.assert_close(theirs.decode(activations), reconstruction)
