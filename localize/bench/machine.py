"""Where and when figures were taken."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch


def environment(device: str = "cpu") -> dict[str, str]:
    """Date, machine and versions, by name; nothing that names the machine or its user."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(device),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
    }


def machine(device: str = "cpu") -> str:
    """The kind of processor, its cores and, if the device is one, the accelerator, in a line."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(named, "") or platform.processor() or platform.machine()
    accelerator = f", {torch.cuda.get_device_name(device)}" if torch.device(device).type == "cuda" else ""
    return f"{processor}, {os.cpu_count()} cores{accelerator}"
