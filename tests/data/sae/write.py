"""Write the folders beside this file again, with the libraries whose formats they are in.

    pip install eai-sparsify==1.3.3 sae-lens==6.54.12
    python tests/data/sae/write.py

Each folder holds what its library wrote for a tiny model with random weights, and in ``expected.safetensors`` inputs
with that model's own activations [B, H] and reconstructions. versions.json says which versions wrote them.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

D, H, K, B = 6, 10, 3, 20


def randomise(module: torch.nn.Module) -> None:
    """Weights unlike any initialisation: no unit norms, no zero biases, no transposes of each other."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in sorted(module.named_parameters()):
            p.copy_(
                (0.3 if "b_" in name or "bias" in name else 1.0)
                * torch.randn(p.shape, generator=g, dtype=torch.float64)
            )


def keep(folder: Path, x: Tensor, activations: Tensor, reconstruction: Tensor) -> None:
    tensors = {"x": x, "activations": activations, "reconstruction": reconstruction}
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / "expected.safetensors")


def write_sparsify(root: Path, x: Tensor) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    for name, dtype in (("sparsify", torch.float32), ("sparsify-bfloat16", torch.bfloat16)):
        coder = SparseCoder(D, SparseCoderConfig(num_latents=H, k=K), dtype=dtype)
        randomise(coder)
        folder = root / name
        coder.save_to_disk(folder)
        values, indices, _ = coder.encode(x.to(dtype))
        dense = torch.zeros(B, H, dtype=dtype).scatter(1, indices, values)
        keep(folder, x, dense, coder.decode(values, indices))


def write_saelens(root: Path, x: Tensor) -> None:
    from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    common = {"d_in": D, "d_sae": H}
    models = {
        "saelens-topk": TopKSAE(TopKSAEConfig(**common, k=K)),
        "saelens-topk-folded": TopKSAE(
            TopKSAEConfig(**common, k=K, apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=True)
        ),
        "saelens-abstopk": AbsTopKSAE(AbsTopKSAEConfig(**common, k=K)),
        "saelens-jumprelu": JumpReLUSAE(JumpReLUSAEConfig(**common)),
    }
    for name, model in models.items():
        randomise(model)
        model.save_model(root / name)
        activations = model.encode(x)
        keep(root / name, x, activations, model.decode(activations))


def main() -> None:
    root = Path(__file__).parent
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(1))
    write_sparsify(root, x)
    write_saelens(root, x)
    versions = {name: version(name) for name in ("eai-sparsify", "sae-lens", "safetensors", "torch")}
    (root / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
    print(versions, file=sys.stderr)


if __name__ == "__main__":
    main()
