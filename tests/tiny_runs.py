"""A corpus, a model and a run that train in seconds: what the end-to-end tests share."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from ranks import ROOT, environment, start

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "gray": (128,) * 3}
SHAPES = ("square", "bar", "pole")
TIMING = ("train/samples_per_second", "data_wait_fraction", "memory_gib")
MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def picture(color: str, shape: str, index: int) -> Image.Image:
    """32 px: a colored shape on noise that tells the `index` apart."""
    pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    height, width = {"square": (16, 16), "bar": (8, 28), "pole": (28, 8)}[shape]
    pixels[2 : 2 + height, 2 : 2 + width] = COLORS[color]
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_corpus(folder: Path, *, samples: int = 96, shards: int = 4) -> Path:
    """`folder`, filled with shards of captioned pictures; no two captions are equal or all equally
    long."""
    parts: list[dict[str, bytes]] = [{} for _ in range(shards)]
    for index in range(samples):
        color = list(COLORS)[index % len(COLORS)]
        shape = SHAPES[index % len(SHAPES)]
        caption = f"{index} a {color} {shape}" + " on a noisy ground" * (index % 2)
        part = parts[index * shards // samples]
        part[f"{index:04d}.png"] = png(picture(color, shape, index))
        part[f"{index:04d}.txt"] = caption.encode()
    for number, part in enumerate(parts):
        write_tar(folder / f"{number:02d}.tar", part)
    return folder


def write_test_sets(folder: Path, count: int, templates: str) -> list[Path]:
    """`folder/classes`, four colors to tell apart, and `folder/captions`, with one to three
    captions an image: `count` images each, in CLIP_benchmark's layout."""
    names = list(COLORS)
    for kind, label in (("classes", "cls"), ("captions", "txt")):
        members: dict[str, bytes] = {}
        for n in range(count):
            captions = "\n".join(f"{n} {names[n % 4]} {k}" for k in range(1 + n % 3))
            members[f"{n:03d}.png"] = png(picture(names[n % 4], "bar", n))
            members[f"{n:03d}.{label}"] = (str(n % 4) if label == "cls" else captions).encode()
        write_tar(folder / kind / "test/0.tar", members)
    (folder / "classes/classnames.txt").write_text("\n".join(names))
    (folder / "classes/zeroshot_classification_templates.txt").write_text(templates)
    return [folder / "classes", folder / "captions"]


def write_test_set(folder: Path) -> Path:
    """Four colors to tell apart, three images each, in CLIP_benchmark's layout."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(COLORS) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} square\n")
    members: dict[str, bytes] = {}
    for index in range(12):
        color = list(COLORS)[index % 4]
        members[f"s{index:02d}.png"] = png(picture(color, "square", 1000 + index))
        members[f"s{index:02d}.cls"] = str(index % 4).encode()
    write_tar(folder / "test" / "0.tar", members)
    return folder


def write_config(folder: Path, corpus: Path, **changes: Any) -> Path:
    """A run's YAML beside its model's JSON: 40 steps of 24 pairs, a checkpoint every 10."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.json"
    model.write_text(json.dumps(MODEL))
    data = {
        "run_dir": str(folder / "run"),
        "model": {"name": str(model)},
        "data": {"shards": str(corpus), "workers": 0, "streams": 12},
        "global_batch_size": 24,
        "duration": "40 steps",
        "optim": {"lr": 1e-3, "warmup": "4 steps"},
        "log_every": "1 steps",
        "checkpoint_every": "10 steps",
        "device": "cpu",
        "precision": "fp32",
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(data | changes))
    return path


def clipx_command(*arguments: str | Path, processes: int = 1) -> list[str]:
    launcher = ["-m"]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher.append("-m")
    return [sys.executable, *launcher, "clipx", *map(str, arguments)]


def run_clipx(
    *arguments: str | Path, processes: int = 1, timeout_seconds: float = 120, torchrun: bool = False
) -> subprocess.CompletedProcess[str]:
    """`clipx ...` to its end, in forked processes or, as a user starts it, under torchrun."""
    if torchrun:
        return subprocess.run(
            clipx_command(*arguments, processes=processes),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(),
            timeout=timeout_seconds,
            check=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        ranks = start(list(arguments), Path(folder) / "log", world_size=processes)
        codes = ranks.wait(timeout_seconds)
        code = next(filter(None, codes), 0)
        return subprocess.CompletedProcess(list(arguments), code, ranks.stdout, ranks.said)


def train(
    config: Path, *overrides: str, processes: int = 1, torchrun: bool = False
) -> subprocess.CompletedProcess[str]:
    """`clipx train` to its end."""
    done = run_clipx("train", config, *overrides, processes=processes, torchrun=torchrun)
    assert done.returncode == 0, done.stderr
    return done


def metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMING} for record in records]


def weights_digest(run: Path, step: int) -> str:
    """SHA-256 of the weights that a run had after `step`."""
    file = run / "checkpoints" / f"step_{step:08d}" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def kill_when(reached: Callable[[], bool], log: Path, config: Path, *overrides: str) -> None:
    """`clipx train`, ended by SIGKILL as soon as `reached()`."""
    ranks = start(["train", config, *overrides], log)
    try:
        deadline = time.monotonic() + 90
        while not reached():
            assert ranks.running(), f"the run ended before the kill\n{ranks.said}"
            assert time.monotonic() < deadline
            time.sleep(0.0005)
    finally:
        ranks.kill()
    assert ranks.wait() == [-signal.SIGKILL]


def steps_logged(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0
