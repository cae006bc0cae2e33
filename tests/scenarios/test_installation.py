"""X11: installed into a fresh environment where torch is present, with no compiler in reach."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORWARD = """
import sys, torch, aimc
assert aimc.__file__.startswith(sys.prefix), aimc.__file__
net = aimc.convert(torch.nn.Linear(4, 3), aimc.presets.pcm()).eval()
aimc.calibrate(net, [torch.ones(2, 4)])
with aimc.program(net).at("1y"), torch.no_grad():
    assert net(torch.ones(2, 4)).isfinite().all()
aimc.data.load("mnist_small", "test", limit=1)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="builds with setuptools")
def test_pip_installs_into_a_fresh_environment_without_a_compiler(tmp_path):
    source, fresh = tmp_path / "source", tmp_path / "fresh"
    shutil.copytree(ROOT / "aimc", source / "aimc", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(fresh, with_pip=True)
    python = Path(os.path.relpath(sys.executable, sys.prefix))
    # Torch and the other libraries are present; this tree, which lies elsewhere, is not.
    (Path(sysconfig.get_path("purelib", vars={"base": str(fresh)})) / "present.pth").write_text(
        "\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    )
    bin = (fresh / python).parent
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC", "CXX")
    }
    environment |= {"PATH": str(bin), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(*command: str, seconds: float) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=seconds
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip, quiet = ("-m", "pip"), ("--no-index", "--no-deps")
    # Built with the setuptools at hand: a fresh environment of an old Python has one of its own, which is older.
    run(
        sys.executable,
        *pip,
        "wheel",
        *quiet,
        "--no-build-isolation",
        "-w",
        "wheels",
        str(source),
        seconds=120,
    )
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    run(str(fresh / python), *pip, "install", *quiet, str(wheel), seconds=60)
    assert "wideresnet_cifar100" in run(str(bin / "aimc"), "list", seconds=300)
    run(str(fresh / python), "-c", FORWARD, seconds=600)
