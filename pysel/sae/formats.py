"""Sparse autoencoders on disk: the folders of EleutherAI's sparsify and of SAELens.

Both keep a ``cfg.json`` beside one safetensors file. sparsify (``sae.safetensors``) computes what `TopKSAE` computes.
SAELens (``sae_weights.safetensors``) stores the encoder as [d, H] and has flags that change what is computed: where
the same function can be had by other weights, those are made; the rest is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pysel import _checks
from pysel.sae.model import TopKSAE

__all__ = ["load_sae", "save_sae"]

_CONFIG = "cfg.json"
_WEIGHTS = {"sparsify": "sae.safetensors", "saelens": "sae_weights.safetensors"}
_OPTIONS = ("activation", "tied", "revive", "aux_k", "aux_weight", "dead_after")  # what neither format has a place for


def load_sae(
    path: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> TopKSAE:
    """Read a sparse autoencoder from a folder that sparsify, SAELens or `save_sae` wrote.

    Args:
        path: a folder with cfg.json and sae.safetensors (sparsify; with ``signed`` in old ones, ``activation="abs"``)
            or sae_weights.safetensors (SAELens, architectures topk and abstopk, the form before version 6 included).
        device: of the parameters; default the CPU.
        dtype: of the parameters; default the file's.

    Returns:
        the model in evaluation mode. It computes what the writer's does: a SAELens model that scales activations by
        decoder norms, or does not centre its input (``apply_b_dec_to_input``), is folded into weights of ours, in
        float64. Inputs of a ``hook_z`` model are to be given flattened. ``spread`` is 1 unless `save_sae` wrote it:
        `TopKSAE.initialise_` sets it, for `TopKSAE.loss`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is damaged, or the model is one that `TopKSAE` cannot be: another architecture or
            normalisation, a transcoder, a skip connection; weights that are missing, unknown or do not fit.

    Example:
        >>> import pysel, tempfile
        >>> sae = TopKSAE(4, 8, 2, key=pysel.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_sae(sae, folder, "saelens")
        ...     load_sae(folder)
        TopKSAE(4, 8, k=2)
    """
    folder = Path(path)
    found = [name for name, file in _WEIGHTS.items() if (folder / file).is_file()]
    if len(found) != 1 or not (folder / _CONFIG).is_file():
        wanted = f"{_CONFIG} and either {_WEIGHTS['sparsify']} or {_WEIGHTS['saelens']}"
        there = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "no folder"
        raise FileNotFoundError(f"load_sae: {folder} must hold {wanted}, got {there or 'an empty folder'}")
    config = _read_config(folder / _CONFIG)
    file = folder / _WEIGHTS[found[0]]
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"load_sae: {file} is not a safetensors file: {error}") from error
    read = _from_sparsify if found[0] == "sparsify" else _from_saelens
    return read(_Folder(folder / _CONFIG, config, file, weights)).to(device=device, dtype=dtype).eval()


def save_sae(model: TopKSAE, path: str | Path, format: str = "sparsify") -> None:
    """Write a sparse autoencoder as a folder that sparsify or SAELens, and `load_sae`, can read.

    What the format has no place for (how dead units are revived, the scale of the loss) goes into an entry ``pysel`` of
    the configuration, which the libraries ignore; the count of silent samples is not kept.

    Args:
        model: to be written; its parameters keep their dtype.
        path: folder, made if missing; files of the same names are replaced.
        format: "sparsify" or "saelens".

    Raises:
        ValueError: an unknown format, or ``activation="abs"`` for sparsify, which has dropped it.
    """
    _checks.choice("save_sae", "format", format, tuple(_WEIGHTS))
    if format == "sparsify" and model.activation != "relu":
        raise ValueError('save_sae: format "sparsify" has no activation "abs"; "saelens" has')
    ours = {name: getattr(model, name) for name in _OPTIONS} | {"spread": float(model.spread)}
    decoder, encoder = model.decoder.detach(), model.encoder.detach()
    if format == "sparsify":
        config = {
            "activation": "topk",
            "expansion_factor": 32,  # not used where num_latents is given
            "normalize_decoder": True,
            "num_latents": model.num_factors,
            "k": model.k,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": model.in_features,
            "pysel": ours,
        }
        names = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    else:
        config = {
            "architecture": "topk" if model.activation == "relu" else "abstopk",
            "d_in": model.in_features,
            "d_sae": model.num_factors,
            "k": model.k,
            "dtype": str(model.bias.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "rescale_acts_by_decoder_norm": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            # the first version with configurations of this form
            "metadata": {"sae_lens_version": "6.0.0", "sae_lens_training_version": None, "pysel": ours},
        }
        encoder = encoder.mT
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
    tensors = (encoder, model.encoder_bias.detach(), decoder, model.bias.detach())
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    # Clones: safetensors refuses tensors that share memory, as tied ones do.
    kept = {name: t.cpu().contiguous().clone() for name, t in zip(names, tensors, strict=True)}
    save_file(kept, folder / _WEIGHTS[format])
    (folder / _CONFIG).write_text(json.dumps(config, indent=1) + "\n")


class _Folder:
    """A configuration and its weights, and the words for what is wrong with them."""

    def __init__(
        self, config_file: Path, config: dict[str, Any], weights_file: Path, weights: dict[str, Tensor]
    ) -> None:
        self.config_file, self.config, self.weights_file, self.weights = config_file, config, weights_file, weights

    def refuse(self, why: str) -> ValueError:
        return ValueError(f"load_sae: {self.config_file}: {why}")

    def size(self, name: str) -> int:
        """A whole number of the configuration, at least 1."""
        value = self.config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refuse(f"{name} must be a whole number of at least 1, got {value!r}")
        return value

    def require(self, name: str, allowed: tuple[Any, ...], default: Any) -> None:
        """Refuse a setting that changes what is computed into something that TopKSAE is not."""
        value = self.config.get(name, default)
        if value not in allowed:
            raise self.refuse(f"{name} must be {' or '.join(map(repr, allowed))} to be a TopKSAE, got {value!r}")

    def take(self, **shapes: tuple[int, ...]) -> list[Tensor]:
        """The weights of these names and shapes (``__`` for a dot), and no others."""
        wanted = {name.replace("__", "."): shape for name, shape in shapes.items()}
        missing, unknown = wanted.keys() - self.weights.keys(), self.weights.keys() - wanted.keys()
        if missing or unknown:
            told = [
                f"{word} {', '.join(sorted(names))}" for word, names in (("no", missing), ("unknown", unknown)) if names
            ]
            raise ValueError(f"load_sae: {self.weights_file} must hold {', '.join(wanted)}, got {' and '.join(told)}")
        for name, shape in wanted.items():
            tensor = self.weights[name]
            if tuple(tensor.shape) != shape or tensor.dtype not in _checks.FLOATING:
                raise ValueError(
                    f"load_sae: {self.weights_file}: {name} must be {list(shape)} of a floating-point dtype by "
                    f"{_CONFIG}, got {list(tensor.shape)} of {tensor.dtype}"
                )
        return [self.weights[name] for name in wanted]

    def model(
        self, ours: Any, activation: str, encoder: Tensor, encoder_bias: Tensor, decoder: Tensor, bias: Tensor
    ) -> TopKSAE:
        """A TopKSAE with these parameters, and with what `save_sae` noted in ``ours``."""
        ours = ours if isinstance(ours, dict) else {}
        options = {name: ours[name] for name in _OPTIONS if name in ours} | {"activation": activation}
        num_factors, d = decoder.shape
        k = self.size("k")
        if k > num_factors:
            raise self.refuse(f"k must be at most the number of units, {num_factors}, got {k}")
        try:
            model = TopKSAE(d, num_factors, k, key=0, device="cpu", dtype=decoder.dtype, **options)
            model.spread.fill_(float(ours.get("spread", 1.0)))
        except (TypeError, ValueError) as error:
            raise self.refuse(f"the entry pysel is damaged: {error}") from error
        with torch.no_grad():
            model.decoder.copy_(decoder)
            if not model.tied:
                model.encoder.copy_(encoder)
            elif not torch.equal(encoder, decoder):
                raise self.refuse("the entry pysel says that encoder and decoder are tied, but they differ")
            model.encoder_bias.copy_(encoder_bias)
            model.bias.copy_(bias)
        return model


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"load_sae: {file} is not a JSON file: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"load_sae: {file} must hold an object, got a {type(config).__name__}")
    return config


def _from_sparsify(folder: _Folder) -> TopKSAE:
    config = folder.config
    folder.require("activation", ("topk",), "topk")
    folder.require("transcode", (False,), False)
    folder.require("skip_connection", (False,), False)
    d = folder.size("d_in")
    h = folder.size("num_latents") if config.get("num_latents") else d * folder.size("expansion_factor")
    encoder, encoder_bias, decoder, bias = folder.take(
        encoder__weight=(h, d), encoder__bias=(h,), W_dec=(h, d), b_dec=(d,)
    )
    activation = "abs" if config.get("signed") else "relu"
    return folder.model(config.get("pysel"), activation, encoder, encoder_bias, decoder, bias)


def _from_saelens(folder: _Folder) -> TopKSAE:
    config = folder.config
    before_6 = config.get("activation_fn_str", config.get("activation_fn")) == "topk"
    if before_6 and config.get("architecture", "standard") in ("standard", "topk"):
        config["architecture"] = "topk"
        config.setdefault("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    folder.require("architecture", ("topk", "abstopk"), "standard")
    if config.get("normalize_activations") not in (None, False):
        folder.require("normalize_activations", ("none",), "none")
    folder.require("finetuning_scaling_factor", (False, None), False)
    if "scaling_factor" in folder.weights and bool((folder.weights["scaling_factor"] == 1).all()):
        del folder.weights["scaling_factor"]  # versions 3 to 5 wrote one that does nothing
    d, h = folder.size("d_in"), folder.size("d_sae")
    encoder, encoder_bias, decoder, bias = folder.take(W_enc=(d, h), b_enc=(h,), W_dec=(h, d), b_dec=(d,))
    dtype, encoder = decoder.dtype, encoder.mT
    if config.get("rescale_acts_by_decoder_norm", False):
        # Theirs ranks activations times the decoder's norms, and divides them again as it decodes.
        norm = decoder.double().norm(dim=1)
        encoder, encoder_bias = encoder.double() * norm[:, None], encoder_bias.double() * norm
        decoder = decoder.double() / norm.clamp_min(1e-300)[:, None]
    if not config.get("apply_b_dec_to_input", True):
        encoder_bias = encoder_bias.double() + encoder.double() @ bias.double()
    metadata = config.get("metadata")
    ours = metadata.get("pysel") if isinstance(metadata, dict) else None
    activation = "relu" if config["architecture"] == "topk" else "abs"
    return folder.model(ours, activation, encoder.to(dtype), encoder_bias.to(dtype), decoder.to(dtype), bias)
