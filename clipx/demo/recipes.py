"""The icon sets of the demo corpus's training and test sets.

The lists contain openly licensed sets without animations. Vendors share drawings between their
sets, so whole families are held out, not single sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HELD_OUT_FAMILIES = ("fluent-emoji", "circle-flags", "ph")

EMOJI_SETS = (
    "noto", "noto-v1", "twemoji", "openmoji", "emojione", "emojione-v1", "emojione-monotone",
    "fxemoji", "streamline-emojis",
)  # fmt: skip

QUICK_ICON_SETS = (
    "mdi", "tabler", "lucide", "healthicons", "pinhead", "temaki", "maki", "icon-park",
    "streamline-color", "fluent-color", "fa7-solid", "mingcute", "carbon", "bi", "hugeicons", "ri",
)  # fmt: skip

FULL_ICON_SETS = (
    "material-symbols", "material-symbols-light", "ic", "mdi", "mdi-light", "solar", "tabler",
    "iconmind", "boxicons", "mingcute", "keyline-icons", "ri", "mynaui", "griddy-icons",
    "iconamoon", "lucide", "lucide-lab", "uil", "tdesign", "si", "majesticons", "gg", "flowbite",
    "vadivam", "basil", "pixelarticons", "pixel", "akar-icons", "ci", "proicons", "typcn",
    "meteor-icons", "prime", "circum", "fe", "eos-icons", "bitcoin-icons", "humbleicons", "uim",
    "uit", "uis", "mi", "cuida", "weui", "duo-icons", "reicon", "hugeicons", "lets-icons",
    "streamline-ultimate", "streamline-plump", "streamline-sharp", "mage", "stash", "lineicons",
    "icon-park-outline", "icon-park-solid", "icon-park-twotone", "jam", "streamline-cyber",
    "guidance", "carbon", "ion", "famicons", "ant-design", "lsicon", "gravity-ui", "cil",
    "at-icons", "ep", "charm", "quill", "bytesize", "bi", "streamline-pixel", "streamline-block",
    "rivet-icons", "nimbus", "formkit", "fluent", "glyphs", "glyphs-poly", "teenyicons", "clarity",
    "streamline-freehand", "ix", "octicon", "system-uicons", "radix-icons", "zondicons", "uiw",
    "codex", "ei", "heroicons", "sidekickicons", "pepicons-pop", "pepicons-print",
    "pepicons-pencil", "f7", "pajamas", "garden", "streamline", "streamline-flex", "fa7-solid",
    "fa7-regular", "picon", "ooui", "oui", "nrk", "qlementine-icons", "streamline-ultimate-color",
    "streamline-plump-color", "streamline-freehand-color", "streamline-kameleon-color",
    "streamline-stickies-color", "fluent-color", "streamline-color", "streamline-flex-color",
    "streamline-sharp-color", "streamline-cyber-color", "icon-park", "marketeq", "pinhead",
    "roentgen", "maki", "temaki", "gis", "map", "geo", "osmic", "fad", "academicons", "wi",
    "meteocons", "healthicons", "medical-icon", "covid", "ginetex", "bx", "bxs",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """The contents of one corpus, apart from the size of its images and shards."""

    preset: str
    icon_sets: tuple[str, ...]
    styles_per_icon: int
    """Drawings kept of one name in one set: outline, filled, ..."""
    clipart: bool
    """Train on Open Clip Art too, where Debian's package is installed."""
    corpus_gib: float
    """Disk space for the shards and test sets, with a margin."""
    emoji_sets: tuple[str, ...] = EMOJI_SETS
    flag_sets: tuple[str, ...] = ("flag",)
    test_emoji: str = "fluent-emoji-flat"
    test_flags: str = "circle-flags"
    test_icons: str = "ph"
    concept_sets: tuple[str, ...] = FULL_ICON_SETS
    """Sets in which common concepts are counted: the same in all presets, so tests are as well."""
    common_concept: int = 25
    """Number of `concept_sets` that must draw a concept."""
    openclipart: Path = Path("/usr/share/openclipart/svg")
    fashion_mnist: Path = Path("/usr/share/datasets/fashion-mnist")

    def __post_init__(self) -> None:
        # A test set whose vendor is in the training set would measure memory.
        for name in self.emoji_sets + self.flag_sets + self.icon_sets:
            for family in HELD_OUT_FAMILIES:
                in_family = name == family or name.startswith(f"{family}-")
                assert not in_family, f"{name} belongs to {family}, which is held out for testing"

    @property
    def trains_on_clipart(self) -> bool:
        return self.clipart and self.openclipart.is_dir()


RECIPES = {
    "quick": Recipe("quick", QUICK_ICON_SETS, styles_per_icon=1, clipart=False, corpus_gib=0.35),
    "full": Recipe("full", FULL_ICON_SETS, styles_per_icon=2, clipart=True, corpus_gib=1.35),
}
