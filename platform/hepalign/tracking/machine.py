"""What the machine did since it was last asked: MLflow's system metrics, sampled with every epoch."""

from __future__ import annotations

import time

import psutil

MEBI = 2**20


class Machine:
    """Samples this process's machine; rates are means since the sample before.

    The names are those of MLflow's own monitor, whose thread would end for good the first time MLflow is away.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._at, self._received, self._sent = time.monotonic(), *_network()
        psutil.cpu_percent()

    def sample(self) -> dict[str, float]:
        """Metrics by name, `system/…`."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        now, (received, sent) = time.monotonic(), _network()
        elapsed_s = max(now - self._at, 1e-3)
        found = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_percentage": memory.percent,
            "system/system_memory_usage_megabytes": memory.used / MEBI,
            "system/process_memory_megabytes": self._process.memory_info().rss / MEBI,
            "system/disk_usage_percentage": disk.percent,
            "system/network_receive_megabytes_per_s": (received - self._received) / MEBI / elapsed_s,
            "system/network_transmit_megabytes_per_s": (sent - self._sent) / MEBI / elapsed_s,
        }
        self._at, self._received, self._sent = now, received, sent
        return found | _gpu()


def _network() -> tuple[int, int]:
    counted = psutil.net_io_counters()
    return (counted.bytes_recv, counted.bytes_sent) if counted else (0, 0)


def _gpu() -> dict[str, float]:
    # the service's desk resolves releases through this package and has no use for torch
    import torch

    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "system/gpu_memory_usage_percentage": 100 * (1 - free / total),
        "system/gpu_peak_memory_megabytes": torch.cuda.max_memory_allocated() / MEBI,
    }
