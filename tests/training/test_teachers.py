"""A teacher of another size and preprocessing, and teachers that cannot read the student's
tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_checkpoints import save
from stepping import ONE_PROCESS, batch, model
from tiny_runs import MODEL

from clipx.embed import load
from clipx.training.teachers import load_teacher, resized
from clipx.types import UserError

SMALL_IMAGES = MODEL | {
    "embed_dim": 8,
    "vision_cfg": MODEL["vision_cfg"] | {"image_size": 16},
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
}


def teacher_of(folder: Path, cfg: dict[str, Any]) -> tuple[Any, Path]:
    path = save(folder / "checkpoints", 1, model=model(cfg, seed=4), model_json=cfg)
    student = MODEL
    loaded = load_teacher(str(path), student=student, runtime=ONE_PROCESS, dtype=torch.float32)
    return loaded, path


def test_a_teacher_of_the_same_size_gives_the_embeddings_of_eval(tmp_path: Path) -> None:
    teacher, path = teacher_of(tmp_path, MODEL)
    rows = batch(5)
    encoder = load(path)
    torch.testing.assert_close(
        teacher.encode_image(rows.views["image"]), encoder.encode_image(rows.views["image"])
    )
    with torch.no_grad():
        expected = encoder.model.encode_text(rows.views["text"])
    torch.testing.assert_close(teacher.encode_text(rows.views["text"]), expected)
    assert teacher.info.embed_dim == 16
    assert teacher.info.scale == encoder.scale


def test_a_teacher_sees_the_students_view_at_its_own_size_and_with_its_own_statistics(
    tmp_path: Path,
) -> None:
    """Pillow's antialiased bicubic, to one level of 255: it rounds after each of two passes."""
    teacher, path = teacher_of(tmp_path, SMALL_IMAGES)
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    views = []
    small = []
    for pixels in coarse:
        view = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
        views.append(torch.from_numpy(np.array(view)).permute(2, 0, 1))
        reduced = view.resize((16, 16), Image.Resampling.BICUBIC)
        small.append(torch.from_numpy(np.array(reduced)).permute(2, 0, 1))
    images = torch.stack(views)
    expected = torch.stack(small)
    assert (resized(images, 16, "bicubic") - expected.float()).abs().max() <= 1
    found = teacher.encode_image(images)
    assert found.shape == (4, 8)
    torch.testing.assert_close(found, load(path).encode_image(expected), atol=0.02, rtol=0)


def test_captions_are_padded_as_the_teacher_needs(tmp_path: Path) -> None:
    """A tower without a causal mask sees the padding, so the whole context is its input."""
    text = MODEL["text_cfg"] | {"no_causal_mask": True, "pool_type": "last"}
    teacher, path = teacher_of(tmp_path, MODEL | {"text_cfg": text})
    tokens = batch(3).views["text"]
    padded = torch.nn.functional.pad(tokens, (0, 16 - tokens.shape[1]))
    with torch.no_grad():
        expected = load(path).model.encode_text(padded)
    torch.testing.assert_close(teacher.encode_text(tokens), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"tokenizer_kwargs": {"clean": "canonicalize"}}, "has another tokenizer than the model"),
        ({"context_length": 12}, "has a context of 12 tokens, the model one of 16"),
    ],
)
def test_a_teacher_that_reads_captions_otherwise_is_refused(
    tmp_path: Path, text: dict[str, Any], message: str
) -> None:
    cfg = MODEL | {"text_cfg": MODEL["text_cfg"] | text}
    with pytest.raises(UserError, match=message) as refused:
        teacher_of(tmp_path, cfg)
    assert "clipx data reinforce" in str(refused.value)


def test_the_digest_tells_teachers_apart(tmp_path: Path) -> None:
    digests = set()
    others = (MODEL, SMALL_IMAGES, MODEL | {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}})
    for number, cfg in enumerate(others):
        digests.add(teacher_of(tmp_path / str(number), cfg)[0].info.digest)
    assert len(digests) == len(others)
    assert teacher_of(tmp_path / "again", MODEL)[0].info.digest in digests


def test_loading_a_teacher_draws_no_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(3)
    path = save(tmp_path / "checkpoints", 1, model=model(MODEL), model_json=MODEL)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_teacher(str(path), student=MODEL, runtime=ONE_PROCESS, dtype=torch.float32)
    assert torch.equal(torch.rand(3), expected)
