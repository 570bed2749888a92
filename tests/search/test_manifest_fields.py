"""Manifests of embeddings, as files and as metadata of a collection."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from test_build_index import MANIFEST

from clipx.search.embeddings import Manifest, read_manifest


def test_a_manifest_of_before_the_scale_had_its_name_is_read(tmp_path: Path) -> None:
    fields = asdict(MANIFEST)
    fields["logit_scale"] = fields.pop("scale")
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    assert read_manifest(tmp_path) == MANIFEST
    assert "logit_scale" in fields, "the caller's mapping is left as it was"


def test_a_manifest_of_before_orientation_had_a_setting_is_of_stored_pixels() -> None:
    past = {"data": {"shards": "a"}, "num_parts": 1}
    manifest = Manifest.of({**asdict(MANIFEST), "data": {"shards": "a"}, "earlier": [past]})
    assert manifest.data == {"shards": "a", "exif_orientation": False}
    assert manifest.earlier == [past | {"data": manifest.data}]
    assert not manifest.exif_orientation
    assert MANIFEST.exif_orientation


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="temperature"):
        Manifest.of({**asdict(MANIFEST), "temperature": 0.1})
