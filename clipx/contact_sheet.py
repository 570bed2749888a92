"""Images of test sets with the classes that a model guesses, as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clipx.embed import Encoder
from clipx.evaluators import zero_shot
from clipx.evaluators.classifier import classifier
from clipx.evaluators.test_sets import evenly_spaced
from clipx.picture_grid import ascii_text

COLUMNS = 6
IMAGES_PER_SET = 2 * COLUMNS
CELL_WIDTH = 210
CELL_HEIGHT = 190
IMAGE_SIZE = 96
LINE_HEIGHT = 15


def write_contact_sheet(
    encoder: Encoder, evaluators: Mapping[str, zero_shot.Config], out: Path
) -> None:
    """Write a PNG with some images of each set, each above its class and the three best guesses.

    evaluators: by the name of their set
    """
    cells = []
    for set_name, config in evaluators.items():
        evaluator = config.build()
        labeled = evaluator.set
        weights = classifier(encoder, labeled.names, evaluator.templates)
        # Evenly spaced, not chosen by how well the model does on them.
        for number in evenly_spaced(len(labeled), IMAGES_PER_SET):
            pixels = labeled.images.shown(number)
            logits = encoder.scale * encoder.encode_image(pixels)[0] @ weights.T
            probability = logits.softmax(-1)
            guesses = []
            for guess in probability.argsort(descending=True)[:3].tolist():
                guesses.append((labeled.names[guess], float(probability[guess])))
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            truth = labeled.names[int(labeled.label[number])]
            cells.append(draw_cell(image, set_name, truth, guesses))

    num_rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL_WIDTH, num_rows * CELL_HEIGHT), "white")
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        sheet.paste(cell, (column * CELL_WIDTH, row * CELL_HEIGHT))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)


def draw_cell(
    image: Image.Image, set_name: str, truth: str, guesses: list[tuple[str, float]]
) -> Image.Image:
    """An image above its class and the guesses, right ones in green.

    guesses: (class, probability), most probable first
    """
    cell = Image.new("RGB", (CELL_WIDTH, CELL_HEIGHT), "white")
    draw = ImageDraw.Draw(cell)
    font = ImageFont.load_default(13)
    small_font = ImageFont.load_default(11)
    x = 8
    y = 6
    image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    cell.paste(image, (x, y))
    draw.rectangle((x - 1, y - 1, x + IMAGE_SIZE, y + IMAGE_SIZE), outline="#cccccc")

    # Only a narrow column is left beside the image, so a long name of a set takes two lines.
    lines = set_name.replace("-", "\n", 1)
    draw.text((x + IMAGE_SIZE + 8, y), lines, fill="#888888", font=small_font)
    y += IMAGE_SIZE + 6
    draw.text((x, y), ascii_text(truth, 27), fill="black", font=font)
    for name, probability in guesses:
        y += LINE_HEIGHT
        color = "#1a7f37" if name == truth else "#b42318"
        line = f"{probability:4.0%}  {ascii_text(name, 24)}"
        draw.text((x, y), line, fill=color, font=small_font)
    return cell
