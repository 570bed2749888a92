"""Every `clipx` command of the README and docs runs, page by page, as a reader would type it: on a
small corpus and model under the names that the pages use."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from documented import Block, blocks
from ranks import ROOT
from tiny_runs import COLORS, MODEL, SHAPES, picture, png, write_tar, write_test_sets

import clipx
from clipx import cli, cli_serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ANIMALS = ("penguin", "gorilla", "cat", "dog")
SUBSTITUTES = {  # what stands for the reader's own: a name in the pages -> one of the workspace
    "MODEL": "runs/demo",
    "DIR": "stored",
    "RUN_A": "runs/demo",
    "RUN_B": "runs/mine",
    "/tmp/": "",
    "/data/": "data/",
    "$(openssl rand -hex 16)": "0123456789abcdef",
    "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT": "1/1",
}
SHORTER = {"data bench": ["--seconds", "0.2"]}
"""Options that are added so that a command does not take its usual time."""


def runnable(page: str) -> list[list[str]]:
    """The words of the `clipx` lines of a page, without blocks that need more."""
    lines = []
    for block in shell_blocks():
        if block.page == page:
            lines += [shlex.split(line) for line in block.commands]
    return [words for words in lines if words[0] == "clipx"]


def shell_blocks() -> list[Block]:
    return [block for block in blocks("sh") if not block.needs]


PAGES = sorted({block.page for block in shell_blocks() if runnable(block.page)})


def substituted(words: list[str]) -> list[str]:
    """The arguments of a command in the workspace."""
    arguments = []
    for word in words[1:]:
        for name, substitute in SUBSTITUTES.items():
            if word == name or (not name.isidentifier() and name in word):
                word = word.replace(name, substitute)
        arguments.append(word)
    return arguments + SHORTER.get(" ".join(words[1:3]), [])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages name. To be copied, not changed."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(ROOT / "configs", folder / "configs")
    write_corpora(folder)
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, run in (("demo_tiny", "runs/demo"), ("mine", "runs/mine")):
            path = folder / f"configs/run/{name}.yaml"
            path.write_text(yaml.safe_dump(settings(run)))
            cli.main(["train", str(path)])
        one_set = ["--set", "data/demo/eval/emoji-fluent"]
        cli.main(["eval", "runs/mine", "--out", "results/mine"])
        cli.main(["eval", "runs/mine", *one_set, "--out", "results/other"])
        cli.main(["embed", "runs/demo", "pictures", "--out", "embeddings/new"])
        shutil.rmtree("runs/mine")  # a page starts it anew, as its reader does
        cli.main(["train", "configs/run/mine.yaml", "duration=10 steps"])
        shutil.copytree("runs/demo", "runs/a")
    return folder


def settings(run: str) -> dict[str, Any]:
    eval_folder = "data/demo/eval"
    return {
        "run_dir": run,
        "model": {"name": "model.json"},
        "data": {"shards": "data/demo/train", "workers": 0, "streams": 4},
        "global_batch_size": 24,
        "duration": "40 steps",
        "optim": {"lr": 2e-3, "warmup": "4 steps"},
        "log_every": "5 steps",
        "checkpoint_every": "10 steps",
        "device": "cpu",
        "precision": "fp32",
        "evaluators": {
            "emoji": {"name": "zero_shot", "path": f"{eval_folder}/emoji-fluent"},
            "captions": {"name": "retrieval", "path": f"{eval_folder}/emoji-fluent-retrieval"},
        },
    }


def write_corpora(folder: Path) -> None:
    """Shards of 96 samples with keys, captions and metadata as of the demo, and two test sets."""
    members: list[dict[str, bytes]] = [{} for _ in range(4)]
    for number in range(96):
        color = list(COLORS)[number % 4]
        shape = SHAPES[number % 3]
        vendor = "twemoji" if number % 2 == 0 else "noto"
        key = f"{vendor}_{ANIMALS[number]}" if number < len(ANIMALS) else f"{vendor}_{number}"
        caption = f"{number} a {color} {shape}"
        record = {"captions": [caption], "caption": caption, "source": vendor}
        part = members[number % 4]
        part[f"{key}.png"] = png(picture(color, shape, number).resize((64, 64)))
        part[f"{key}.json"] = json.dumps(record).encode()
    for number, part in enumerate(members):
        write_tar(folder / f"data/demo/train/{number:05d}.tar", part)
    for name in ("pairs", "laion"):
        shutil.copytree(folder / "data/demo/train", folder / "data" / name)
    classes, captions = write_test_sets(folder / "data/demo/eval", 24, "a {c} bar\n")
    classes.rename(classes.parent / "emoji-fluent")
    captions.rename(captions.parent / "emoji-fluent-retrieval")


def write_files(folder: Path) -> None:
    """A model's JSON, and the pictures, lists and tables that commands take."""
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "pictures").mkdir()
    rows = ["path,title"]
    names = ("cat", "toy", "a", "b", "c")
    for number, name in enumerate(names):
        image = picture(list(COLORS)[number % 4], SHAPES[number % 3], 500 + number)
        image.save(folder / f"{name}.png")
        image.save(folder / f"pictures/{name}.png")
        rows.append(f"pictures/{name}.png,a thing called {name}")
    (folder / "products.csv").write_text("\n".join(rows) + "\n")
    (folder / "things.txt").write_text("red square\ngreen bar\nblue pole\n")
    (folder / "withdrawn.txt").write_text("twemoji_penguin\nnoto_gorilla\n")


@pytest.fixture
def server_that_returns(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """`clipx serve` ends where it would begin to wait for requests. Returns the applications."""
    applications: list[Any] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        applications.append(server.config.app)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    # Any free port: the one of the page may be taken.
    monkeypatch.setattr(cli_serve, "_listen", lambda host, port: socket.create_server((host, 0)))
    return applications


def test_the_pages_with_commands_were_found() -> None:
    assert {"README.md", "data.md", "evaluation.md", "report.md", "search.md"} <= set(PAGES)
    assert sum(len(runnable(page)) for page in PAGES) > 45


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(
    page: str,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_that_returns: list[Any],
) -> None:
    shutil.copytree(workspace, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    for words in runnable(page):
        assert exit_code(substituted(words)) == 0, shlex.join(words)
    serves = [words for words in runnable(page) if words[1] == "serve"]
    assert len(server_that_returns) == len(serves)
    if page == "search.md":
        run_python_of_the_search_page()


def exit_code(arguments: list[str]) -> int | str:
    try:
        cli.main(arguments)
    except SystemExit as end:
        return end.code or 0
    return 0


def run_python_of_the_search_page() -> None:
    names: dict[str, Any] = {}
    for block in blocks("python"):
        if block.page == "search.md":
            exec(block.content, names)
    assert len(names["hits"]) == 10
    assert isinstance(names["index"], clipx.Index)
