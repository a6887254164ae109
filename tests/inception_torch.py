"""Makes inception_torch.json: Inception's features and torch's resize, by the PyTorch of another environment.

    pip install torch==2.13.0 torchvision==0.28.0 pytorch-fid==0.3.0 pillow
    python tests/inception_torch.py [--weights FOLDER]

Weights are made up, by name. With --weights it also leaves them in FOLDER, in both of torch's formats.
"""

import argparse
import base64
import io
import json
from pathlib import Path

import numpy as np
import torch
from made_weights import made_pictures, made_weight

# Where torchvision is built for another torch than the CPU's, its import asks for operators that it cannot load.
stubs = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    stubs.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402
from pytorch_fid import inception as fid  # noqa: E402

SHOWN = 32


def network(variant: str) -> torch.nn.Module:
    """With made weights, up to the classes."""
    net = torchvision.models.inception_v3(weights=None, aux_logits=False, init_weights=False, num_classes=1008)
    if variant == "fid":
        for name, pooled in (("5b", (192, 32)), ("5c", (256, 64)), ("5d", (288, 64))):
            setattr(net, f"Mixed_{name}", fid.FIDInceptionA(*pooled))
        for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            setattr(net, f"Mixed_{name}", fid.FIDInceptionC(768, inner))
        net.Mixed_7b, net.Mixed_7c = fid.FIDInceptionE_1(1280), fid.FIDInceptionE_2(2048)
    state = net.state_dict()
    made = {name: torch.from_numpy(made_weight(name, tuple(old.shape))) for name, old in state.items() if old.ndim}
    net.load_state_dict(state | made)
    net.fc = torch.nn.Identity()
    return net.eval()


def features(variant: str, pictures: np.ndarray) -> dict:
    """Of pictures resized as pytorch-fid does it: the first numbers of each, and sums over all."""
    pixels = torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(pixels, (299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        found = network(variant)(2 * resized / 255 - 1).double().numpy()
    return {
        "first": found[:, :SHOWN].tolist(),
        "mean": found.mean(axis=1).tolist(),
        "norm": np.linalg.norm(found, axis=1).tolist(),
        "resized_rows": resized[0, :, ::37, ::37].permute(1, 2, 0).tolist(),
    }


def saved(zipped: bool) -> str:
    """A small state dict in one of torch's formats, as base64: whole, transposed and shared tensors of some types."""
    row = torch.arange(12, dtype=torch.float32)
    state = {"whole": row.reshape(3, 4), "turned": row.reshape(3, 4).T, "part": row[5:9], "count": torch.tensor(7)}
    stream = io.BytesIO()
    torch.save(state | {"half": row.half()}, stream, _use_new_zipfile_serialization=zipped)
    return base64.b64encode(stream.getvalue()).decode()


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path)
    folder = parser.parse_args().weights
    pictures = made_pictures(3, 32)
    result = {
        "made_with": {"torch": torch.__version__, "torchvision": torchvision.__version__, "pytorch-fid": "0.3.0"},
        "fid": features("fid", pictures),
        "torchvision": features("torchvision", pictures),
        "zip": saved(True),
        "pickles": saved(False),
    }
    (Path(__file__).parent / "inception_torch.json").write_text(json.dumps(result) + "\n")
    for zipped in (True, False) if folder else ():
        path = folder / f"{'zip' if zipped else 'pickles'}.pth"
        torch.save(network("fid").state_dict(), path, _use_new_zipfile_serialization=zipped)


if __name__ == "__main__":
    main()
