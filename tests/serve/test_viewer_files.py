"""The viewer's files: NiiVue as its authors released it, and a page that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import httpx2
import pytest
from shown_site import Shown

from hepalign_serve.viewer import WEB

VENDOR = json.loads((WEB / "vendor/vendor.json").read_text(encoding="utf-8"))
LARGEST_BYTES = 4 * 2**20


def test_niivue_is_the_pinned_file() -> None:
    content = (WEB / "vendor" / VENDOR["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == VENDOR["sha256"]
    assert len(content) <= LARGEST_BYTES
    assert VENDOR["version"] in VENDOR["file"]
    licences = (WEB / "vendor/LICENSES.txt").read_text(encoding="utf-8")
    assert f"{VENDOR['package']} {VENDOR['version']} ({VENDOR['licence']})" in licences
    assert VENDOR["file"] in (WEB / "stage.js").read_text(encoding="utf-8")


@pytest.mark.slow
def test_niivue_is_what_npm_has(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here to fetch NiiVue with")
    subprocess.run([npm, "pack", f"{VENDOR['package']}@{VENDOR['version']}"], cwd=tmp_path, check=True)
    (packed,) = tmp_path.glob("*.tgz")
    digest = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
    assert f"sha512-{digest}" == VENDOR["integrity"]
    with tarfile.open(packed) as archive:
        member = archive.extractfile(f"package/{VENDOR['path']}")
        assert member is not None
        assert hashlib.sha256(member.read()).hexdigest() == VENDOR["sha256"]


@pytest.mark.parametrize("name", [path.name for path in WEB.iterdir() if path.is_file()])
def test_own_files_name_no_other_host_and_no_code_in_strings(name: str) -> None:
    text = (WEB / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://|\beval\(|new Function|innerHTML|document\.write", text)
    assert "style=" not in text
    assert not re.search(r"\son\w+=", text) or name.endswith(".js")


def test_policy_and_keeping(shown: Shown) -> None:
    page = httpx2.get(f"{shown.url}/")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"
    library = httpx2.get(f"{shown.url}/viewer/vendor/{VENDOR['file']}")
    assert "immutable" in library.headers["cache-control"]
    assert library.headers["content-type"].startswith("text/javascript")
    for hidden in ("/viewer/vendor/..%2Findex.html", "/viewer/vendor/none.js", "/viewer/..%2F..%2Fapi.py"):
        assert httpx2.get(shown.url + hidden).status_code == 404
