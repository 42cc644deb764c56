"""Plug-ins made visible without a network: a package and its metadata in a folder, as an installer writes them."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path

from command_line import ROOT, process

from layers import catalog, plugins

EXAMPLE = Path(__file__).with_name("plugin")
CARD = (EXAMPLE / "stones_example/norm/rms_norm.py").read_text(encoding="utf-8")


def installed(site, name="stones-example", version="1.0", points=("rms-norm = stones_example.norm.rms_norm",), **files):
    """Write the metadata of a distribution into ``site``, and ``files``, a path with __ for / and what it holds."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["[console_scripts]", "unrelated = nowhere:main", "", f"[{plugins.GROUP}]", "# a comment", *points]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n\nName: in the text\n")
    for path, content in files.items():
        file = site / f"{path.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return site


def example(site):
    """Install the example in ``site``."""
    shutil.copytree(EXAMPLE / "stones_example", site / "stones_example", ignore=shutil.ignore_patterns("__pycache__"))
    return installed(site)


def forget():
    """Let the catalogue look again for what is installed."""
    importlib.invalidate_caches()
    catalog.stones.cache_clear()
    catalog._plugins.cache_clear()


def seen(monkeypatch, *sites):
    """Put ``sites`` on the path of this process and plug-ins on."""
    monkeypatch.delenv(plugins.OFF)
    monkeypatch.setattr(sys, "path", [*map(str, sites), *sys.path])
    forget()


def run(site, *arguments, **variables):
    """Run a process that sees the plug-ins in ``site``."""
    path = os.pathsep.join([str(ROOT), str(site)])
    return process(*arguments, **{"PYTHONPATH": path, plugins.OFF: None, **variables})
