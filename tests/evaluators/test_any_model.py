"""Models of open_clip and transformers, evaluated as their own libraries would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from samples import picture
from tiny_runs import MODEL, write_test_set
from torch.nn import functional as F

from clipx import embed
from clipx.evaluators import zero_shot
from clipx.evaluators.classifier import classifier
from clipx.models.dual_encoder import DualEncoder
from clipx.types import Setting, UserError

transformers = pytest.importorskip("transformers")
NAMES = ["red", "green", "blue", "gray"]
TEMPLATES = ["a {c} square", "the color {c}", "{c}"]


def images(count: int) -> list[Image.Image]:
    """Of other shapes than the model's."""
    return [picture(n, (50 + n, 40)) for n in range(count)]


@pytest.fixture
def published(tmp_path: Path) -> Any:
    """A model that open_clip has built, in a folder with its weights."""
    folder = tmp_path / "open_clip"
    folder.mkdir()
    config = {"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(3)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    weights = {name: t.contiguous() for name, t in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return model.eval(), folder


def test_zero_shot_of_open_clips_model_is_as_by_its_own_classifier(
    published: Any, tmp_path: Path
) -> None:
    model, folder = published
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=16)
    with torch.no_grad():
        templates = [t.replace("{c}", "{}") for t in TEMPLATES]
        weights = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, templates)
        pixels = torch.stack([preprocess(image) for image in images(9)])
        expected = model.logit_scale.exp() * model.encode_image(pixels, normalize=True) @ weights
    encoder = embed.load(f"local-dir:{folder}")
    own = classifier(encoder, NAMES, TEMPLATES)
    logits = encoder.scale * encoder.encode_image(images(9)) @ own.T
    torch.testing.assert_close(own, weights.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)  # logits reach 14
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert expected.std(0).min() > 1e-2, "images that are all alike would show nothing"

    path = write_test_set(tmp_path / "set")
    (path / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    evaluator = zero_shot.Config(path=str(path)).build()
    found = evaluator.evaluate(encoder, Setting())
    decoded = [evaluator.set.images.image(n) for n in range(len(evaluator.set))]
    pictures = [Image.fromarray(np.asarray(d.permute(1, 2, 0))) for d in decoded]
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in pictures])
        guesses = (model.encode_image(pixels) @ weights).argmax(1)
    accuracy = (guesses == evaluator.set.label).double().mean().item()
    assert found.metrics["zeroshot-top1"] == accuracy


def tokenizer(folder: Path, *, end: str) -> Any:
    """Words to ids, by a tokenizer of transformers with an end token that is also its padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [
        "<unk>",
        *["a", "the", "color", "of", "square", "red", "green", "blue", "gray"],
        "<start>",
        end,
    ]
    inner = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, len(words) - 1)]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token=end, eos_token=end
    )
    made.save_pretrained(folder)
    return made


def transformers_model(kind: str, folder: Path) -> tuple[Any, Any, Any]:
    """(model, tokenizer, image processor), saved to `folder`."""
    tokens = tokenizer(folder, end="<end>")
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shared |= {"num_attention_heads": 2}
    text = shared | {"vocab_size": 12, "max_position_embeddings": 8, "eos_token_id": 11}
    text |= {"bos_token_id": 10, "pad_token_id": 11}
    vision = shared | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(1)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        model = transformers.CLIPModel(config)
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model = transformers.SiglipModel(config)
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, resample=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, tokens, processor


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_transformers_folder_embeds_as_transformers_does(kind: str, tmp_path: Path) -> None:
    model, tokens, processor = transformers_model(kind, tmp_path)
    encoder = embed.load(tmp_path)
    texts = ["a red square", "the color blue", "gray"]
    with torch.no_grad():
        inputs = tokens(texts, padding="max_length", max_length=8, return_tensors="pt")
        text = model.get_text_features(input_ids=inputs["input_ids"]).pooler_output
        pixels = processor(images(3), return_tensors="pt")["pixel_values"]
        image = model.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(encoder.encode_text(texts), F.normalize(text, dim=-1))
    # Their resizing may round a pixel otherwise.
    torch.testing.assert_close(
        encoder.encode_image(images(3)), F.normalize(image, dim=-1), rtol=0, atol=5e-3
    )
    assert (encoder.encode_image(images(2))[0] - encoder.encode_image(images(2))[1]).norm() > 0.02
    assert encoder.scale == pytest.approx(model.logit_scale.exp().item())
    weights = classifier(encoder, ["red", "blue"], ["a {c} square"])
    torch.testing.assert_close(
        weights, encoder.encode_text(["a red square", "a blue square"]), rtol=0, atol=1e-6
    )


def test_the_digest_of_texts_covers_all_that_their_embeddings_depend_on(tmp_path: Path) -> None:
    """A cached classifier of one model must never be used for another."""
    transformers_model("clip", tmp_path / "a")
    for name, file, old, new in (
        ("activation", "config.json", '"quick_gelu"', '"gelu"'),
        ("words", "tokenizer.json", '"red"', '"crimson"'),
    ):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        text = (tmp_path / name / file).read_text()
        assert old in text
        (tmp_path / name / file).write_text(text.replace(old, new))
    digests = [embed.load(tmp_path / name).text_digest() for name in ("a", "activation", "words")]
    assert len(set(digests)) == 3
    assert embed.load(tmp_path / "a").text_digest() == digests[0]

    model = DualEncoder(MODEL)
    quick = DualEncoder(MODEL | {"quick_gelu": True})
    quick.load_state_dict(model.state_dict())
    encoders = [embed.Encoder(model, MODEL), embed.Encoder(quick, MODEL | {"quick_gelu": True})]
    assert len({encoder.text_digest() for encoder in encoders}) == 2


def test_weights_of_open_clip_are_named_by_tag_or_file(published: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="open_clip:ViT-B-32 names no weights; write open_clip:A"):
        embed.load("open_clip:ViT-B-32")
    with pytest.raises(UserError, match="'nothing' is none of open_clip's for ViT-B-32"):
        embed.load("open_clip:ViT-B-32/nothing")
    _, folder = published
    with pytest.raises(UserError, match="does not fit the model"):
        embed.load(f"open_clip:ViT-B-32/{folder}/open_clip_model.safetensors")


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no usable checkpoint"):
        embed.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="cannot be read as a CLIPModel"):
        embed.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json' cannot be read"):
        embed.load(tmp_path)
