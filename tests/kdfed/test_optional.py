from __future__ import annotations

import json

import pytest

from kdfed.errors import RunError
from kdfed.optional import optional


def test_a_package_that_is_there_is_imported():
    assert optional("json", "pages") is json


def test_a_package_that_is_missing_is_named_with_what_installs_it():
    with pytest.raises(
        RunError, match=r"pages need the package 'nowhere': pip install 'kdfed\[bench\]' \(No module named"
    ):
        optional("nowhere.deep", "pages", "bench")
