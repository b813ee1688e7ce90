"""Guide over HTTP, upload of the .nii.gz included, next to the same call in process.

Usage: python benchmarks/guide_http.py [--shape 256,256,128] [--rounds 3]
The service runs on this machine with the release that HEPALIGN_RELEASE names, else the champion, else the starter;
its plan is loaded as during a procedure. In process: reading the same files, guide, no writing of results.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from hepalign.image.nifti import read_nifti, write_nifti
from hepalign.inference.guide import guide
from hepalign.inference.planner import plan
from hepalign_serve.client import Client
from hepalign_serve.run import serving
from hepalign_serve.settings import Lane, Replicas, Settings
from scene import release, scene
from timing import ratio


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="256,256,128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    size = [int(n) for n in words.shape.split(",")]
    case = scene((size[0], size[1], size[2]), seed=7000)
    bundle = release()
    made = plan(bundle, case.plan.pmr, case.plan.pct, labels=dict(case.plan.labels))
    seconds: dict[str, list[float]] = {"HTTP": [], "in process": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volumes = {"pmr": case.plan.pmr, "pct": case.plan.pct, "ict": case.ict, "ict-probe-mask": case.probe_mask}
        for role, volume in (volumes | {k.replace("_", "-"): v for k, v in case.plan.labels.items()}).items():
            write_nifti(volume, folder / f"{role}.nii.gz")
        lane, nets = Lane(threads=words.threads), Replicas(threads=words.threads)
        settings = Settings(
            release=str(bundle.folder), unjudged_release=True, data_folder=folder / "service", port=0,
            plan=lane, guide=lane, synthesis=nets, inpainting=nets,
        )  # fmt: skip
        with serving(settings) as service, Client(service.url, service.token) as client:
            remote = client.open_case()
            for role in ("pmr", "pct", *(label.replace("_", "-") for label in case.plan.labels)):
                client.upload(remote, role, folder / f"{role}.nii.gz")
            client.plan(remote, wait_s=600.0)
            for turn in range(words.rounds + 1):
                start = time.perf_counter()
                for role in ("ict", "ict-probe-mask"):
                    client.upload(remote, role, folder / f"{role}.nii.gz")
                client.guide(remote, wait_s=600.0)
                over_http = time.perf_counter() - start
                start = time.perf_counter()
                images = [read_nifti(folder / f"{role}.nii.gz") for role in ("ict", "ict-probe-mask")]
                guide(bundle, made, *images)
                if turn:
                    seconds["HTTP"].append(over_http)
                    seconds["in process"].append(time.perf_counter() - start)
    ratio(f"guide over HTTP over in process, {words.shape.replace(',', '×')}", seconds, "HTTP", "in process",
          at_most=1.2)  # fmt: skip


if __name__ == "__main__":
    main()
