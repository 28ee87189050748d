"""The fixture of the reporting tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from invented import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)
