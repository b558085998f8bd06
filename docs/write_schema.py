"""Write docs/plan.schema.json, which describes the output of ``Plan.to_json``."""

from __future__ import annotations

import json
from pathlib import Path

from localize.export import plan_schema


def text() -> str:
    return json.dumps(plan_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("plan.schema.json").write_text(text(), encoding="utf-8")
