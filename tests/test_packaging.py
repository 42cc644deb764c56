"""The wheel holds three packages and nothing else, and works from another directory; so does the editable install."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_has_exactly_our_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"stones_cli", "layers", "profiles"}
    for package in ("stones_cli", "layers", "profiles"):
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        sources |= {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.yaml")} | {f"{package}/py.typed"}
        sources |= {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("templates/*")}
        assert sources <= set(names)


def test_the_source_distribution_has_the_tests_and_their_plug_in_too(tmp_path):
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    plugin = {str(path.relative_to(ROOT)) for path in (ROOT / "tests/plugin").rglob("*.*") if path.suffix != ".pyc"}
    assert {"pyproject.toml", "tests/test_plugins.py", "tests/plugin/pyproject.toml"} | plugin <= names
    assert {name.partition("/")[0] for name in names if name.endswith(".py")} == {
        *("stones_cli", "layers", "profiles", "tests")
    }


def run(command, folder, **variables):
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_wheel_works_from_another_directory(wheel, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = "import layers, profiles, stones_cli; print(layers.__file__, profiles.__file__, stones_cli.__file__)"
    files = run([sys.executable, "-c", where], elsewhere, PYTHONPATH=str(site)).split()
    assert all(Path(file).is_relative_to(site) for file in files)
    listed = run([sys.executable, str(site / "bin" / "stones"), "list", "--json"], elsewhere, PYTHONPATH=str(site))
    assert '"gn"' in listed
    profiles = "from importlib.resources import files; print(*(p.name for p in files('profiles').iterdir()))"
    assert "ci.yaml" in run([sys.executable, "-c", profiles], elsewhere, PYTHONPATH=str(site))


def test_a_plug_in_that_pip_installs_beside_the_wheel_is_listed(wheel, tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT / "tests/plugin")], check=True, capture_output=True)
    site, wheels = tmp_path / "site", [str(wheel), *map(str, tmp_path.glob("*.whl"))]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), *wheels]
    subprocess.run(install, check=True, capture_output=True)
    command, found = [sys.executable, str(site / "bin" / "stones"), "show", "rms-norm"], {"PYTHONPATH": str(site)}
    assert "of stones-example 1.0, in " in run(command, tmp_path, **found, STONES_NO_PLUGINS="")


def test_the_installed_command_works_from_another_directory(tmp_path):
    command = Path(sys.executable).parent / "stones"
    assert command.exists(), "run the tests by `make test`, which installs the command"
    assert "gn" in run([str(command), "list"], tmp_path)


def test_a_folder_of_the_same_name_is_explained(tmp_path):
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "__init__.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "stones_cli", "list"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    explanation = result.stderr.strip().splitlines()[-1]
    assert "stones needs its own package 'layers'" in explanation
    assert str(tmp_path) in explanation
