"""The cache of built-in bundles."""

import pytest

from bench.lab import builtin
from edgespec.manifest import MANIFEST


@pytest.mark.parametrize("damaged", [False, True])
def test_a_bundle_that_is_not_in_the_cache_or_damaged_is_exported(tmp_path, monkeypatch, damaged):
    if damaged:
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny" / MANIFEST).write_text("{")
    monkeypatch.setattr(builtin, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(builtin, "weights_file", lambda: tmp_path / "weights")
    monkeypatch.setattr("export.bundle.export", lambda settings: settings.out)
    assert builtin._cached("tiny") == tmp_path / "tiny"
