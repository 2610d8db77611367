"""Ray clusters of two nodes, both on this machine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed here: scripts/ray_env.py makes an environment"
)


@contextmanager
def two_nodes(second_cpus: int) -> Iterator[Any]:
    """A head of one CPU and another node of so many. What runs on it may have joined it."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=second_cpus)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def second_node(cluster: Any) -> Any:
    """The node that is not the head."""
    (found,) = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    return found
