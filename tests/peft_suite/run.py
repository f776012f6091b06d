"""Run the tuner tests of the installed PEFT version with CDKA as the method.

python -m tests.peft_suite.run [pytest options]

Downloads PEFT's source distribution, which carries its tests, from the package index. The models that they load are
replaced by small random ones of the same architectures (``models.py``), so nothing else is downloaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from .models import write_models

HOME = Path(__file__).resolve().parents[2] / ".cdka" / "peft-suite"
MODULES = ("custom_models", "decoder_models", "encoder_decoder_models", "feature_extraction_models", "seq_classifier")


def sources() -> Path:
    """The unpacked source distribution that matches the installed PEFT."""
    folder = HOME / f"peft-{version('peft')}"
    if not folder.exists():
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(HOME)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, f"peft=={version('peft')}"]
        subprocess.run(command, check=True)
        with tarfile.open(HOME / f"{folder.name}.tar.gz") as archive:
            archive.extractall(HOME, filter="data")
    (folder / "tests" / "__init__.py").touch()  # the tests import each other as a package, but __init__.py is missing
    return folder


def main() -> int:
    """Run the tests. Returns pytest's exit status."""
    root = sources()
    write_models(HOME / "home" / "hub")
    environment = os.environ | {
        "HF_HOME": str(HOME / "home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    tests = [f"tests/test_{name}.py" for name in MODULES]
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(root), "-p", "no:cacheprovider"]
    command += ["-p", "tests_of_cdka_plugin", "-q", "-rs", "--tb=short", *tests, *sys.argv[1:]]
    # PEFT's tests are a package named ``tests``, like ours, so the plugin is copied under another name.
    link = HOME / "plugin"
    link.mkdir(exist_ok=True)
    (link / "tests_of_cdka_plugin.py").write_text(Path(__file__).with_name("plugin.py").read_text())
    environment["PYTHONPATH"] = str(link)
    return subprocess.run(command, cwd=root, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
