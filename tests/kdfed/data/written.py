"""Parquet files that tests of tables and of their sources write."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ["cat", "dog", "owl"]
IMAGE_FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}


def png(value: int, size: tuple[int, int] = (4, 4), mode: str = "L") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_images(path: Path, rows: int, **image: Any) -> Path:
    images = [{"bytes": png(10 * row, **image), "path": f"{row}.png"} for row in range(rows)]
    return write(path, {"image": images, "label": [row % 2 for row in range(rows)]}, IMAGE_FEATURES)
