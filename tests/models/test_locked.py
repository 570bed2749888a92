"""Locked parts stay as they are, and a model cut at its heads computes what the whole one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from locked_towers import LOCKED, model_json, write_bert
from tiny_runs import MODEL

from clipx import embed
from clipx.checkpoints import format as checkpoints
from clipx.checkpoints.format import Training, TrainState
from clipx.data.preprocessing import normalize
from clipx.models.dual_encoder import DualEncoder
from clipx.models.locked import split_locked
from clipx.types import UserError


@pytest.fixture
def cfg(tmp_path: Path) -> dict[str, Any]:
    return model_json(write_bert(tmp_path / "bert"))


def encoder(cfg: dict[str, Any], locked: list[str]) -> DualEncoder:
    torch.manual_seed(0)
    model = DualEncoder(cfg)
    model.lock(locked)
    return model


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    return torch.randn(5, 3, 32, 32), torch.randint(1, 20, (5, 9))


def test_locked_parts_get_no_gradient_and_stay_in_evaluation_mode(cfg: dict[str, Any]) -> None:
    model = encoder(cfg, LOCKED)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for mode in (True, False, True):
        model.train(mode)
        assert not model.visual.trunk.training
        assert not model.text.transformer.encoder.layer[0].attention.self.dropout.training
        assert model.visual.head.training == mode
    image, text = inputs()
    out = model(image, text)
    (out[0] @ out[1].T).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {n.split(".")[1] for n in trained if "." in n} == {"head", "proj"}
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())  # batch norms too


def test_only_unlocked_groups_learn_and_keep_statistics(cfg: dict[str, Any]) -> None:
    """Batch norm in a locked block stays in evaluation; in an unlocked one it is trained."""
    torch.manual_seed(0)
    model = DualEncoder(cfg)
    model.lock(LOCKED, {"visual": 2, "text": 1})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for mode in (False, True):
        model.train(mode)
    trunk = model.visual.trunk
    locked = [*trunk.blocks[0].modules(), *trunk.blocks[2].modules(), trunk.bn1]
    assert not any(module.training for module in locked)
    assert all(m.training for m in [*trunk.blocks[3].modules(), *trunk.blocks[4].modules()])
    image, text = inputs()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    out = model(image, text)
    (out[0] @ out[1].T * torch.randn(5, 5)).sum().backward()
    optimizer.step()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(before[n], t)}
    learned = {"blocks.3.", "blocks.4.", "conv_head.", "bn2."}  # timm's last two groups
    for name in before:
        if name.startswith("visual.trunk.") and "num_batches" not in name:
            rest = name.removeprefix("visual.trunk.")
            assert (name in changed) == any(rest.startswith(part) for part in learned), name
    assert "text.transformer.embeddings.word_embeddings.weight" not in changed
    assert "text.transformer.encoder.layer.0.output.dense.weight" in changed
    assert {"visual.head.mlp.fc1.weight", "text.proj.0.weight"} <= changed


def test_more_groups_than_there_are_cannot_be_unlocked(cfg: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"unlocked_groups\.text 1: .* locks 0 groups.*add the tower"
    ):
        DualEncoder(MODEL).lock(["visual"], {"text": 1})
    with pytest.raises(UserError, match=r"visual 4: .* locks 4 groups .* unlock 3 at most"):
        DualEncoder(MODEL).lock(["visual"], {"visual": 4})


def test_a_prefix_without_parameters_is_reported() -> None:
    with pytest.raises(UserError, match=r"'visual\.trunk' .* visual, visual\.conv1"):
        DualEncoder(MODEL).lock(["visual.trunk"])
    with pytest.raises(UserError, match=r"'visual\.conv'"):  # whole names only
        DualEncoder(MODEL).lock(["visual.conv"])


def test_heads_on_trunk_features_equal_the_whole_model(cfg: dict[str, Any]) -> None:
    model = encoder(cfg, LOCKED).eval()
    split = split_locked(model, cfg)
    image, text = inputs()
    text[2, 5:] = 0  # padding
    features = split.heads(split.image_trunk(image), split.text_trunk(text))
    for ours, whole in zip(features, model(image, text), strict=True):
        torch.testing.assert_close(ours, whole)
    assert split.heads.logit_scale is model.logit_scale
    assert {id(p) for p in split.heads.parameters()} <= {id(p) for p in model.parameters()}


def test_the_digest_tells_trunks_apart_and_not_heads(cfg: dict[str, Any]) -> None:
    model = encoder(cfg, LOCKED)
    digest = split_locked(model, cfg).digest
    model.visual.head.mlp.fc1.weight.data += 1
    wider = {**cfg, "vision_cfg": {**cfg["vision_cfg"], "timm_drop": 0.5}}
    assert split_locked(model, wider).digest == digest
    model.visual.trunk.conv_stem.weight.data[0] += 1
    assert split_locked(model, cfg).digest != digest


def test_what_cannot_be_cut_is_reported(cfg: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"set model\.locked"):
        split_locked(encoder(cfg, LOCKED[:1]), cfg)
    with pytest.raises(UserError, match="VisionTransformer has no trunk"):
        split_locked(encoder(MODEL, []), MODEL)


def test_trimming_the_padding_of_a_bert_changes_no_embedding(cfg: dict[str, Any]) -> None:
    model = encoder(cfg, []).eval()
    _, text = inputs()
    text[3, 4:] = 0
    padded = torch.cat([text, torch.zeros(5, 7, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(model.encode_text(padded), model.encode_text(text))
    alone = model.encode_text(text[3:4, :4])
    torch.testing.assert_close(alone, model.encode_text(text)[3:4])


def test_a_checkpoint_needs_neither_the_text_folder_nor_its_normalization(
    cfg: dict[str, Any], tmp_path: Path
) -> None:
    model = encoder(cfg, LOCKED)
    path = checkpoints.save(
        tmp_path / "c",
        TrainState(),
        model.state_dict(),
        Training({}, []),
        checkpoints.About(cfg, keep=1),
    )
    (tmp_path / "bert").rename(tmp_path / "gone")
    loaded = embed.load(path)
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    ours = model.eval().encode_image(normalize(pixels[None], (0.5, 0.5, 0.5), (0.5, 0.25, 0.125)))
    torch.testing.assert_close(loaded.encode_image(pixels), ours)
    assert loaded.encode_text("a red picture").shape == (1, 12)
    with pytest.raises(UserError, match=r"hf_model_name .* cannot be built"):
        DualEncoder(cfg)
