"""What is published: a wheel that works without the repository, and a lock file that is safe."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from ltbench import catalog

ROOT = Path(__file__).parents[1]


def test_a_wheel_brings_its_configs_and_suites(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert wheel.stat().st_size < 2**20  # no results, no data

    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "ltbench", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    listed = json.loads(run("list", "--json"))
    assert listed["configs"] == catalog.configs()
    assert listed["suites"] == catalog.suites()
    assert run("show", "vssam_digits") == (ROOT / "configs/vssam_digits.yaml").read_text()


def test_the_lock_names_one_version_and_hashes_of_each_package_and_no_host():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pins = re.findall(r"^(\S+?)==(\S+)(.*(?:\n    .*)*)", lock, re.MULTILINE)
    assert len(pins) > 50
    assert all("--hash=sha256:" in rest for _, _, rest in pins)
    versions = dict(pin[:2] for pin in pins)
    assert versions["lightning"] not in ("2.6.2", "2.6.3")
