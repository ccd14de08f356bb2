"""What jobs ask of a cluster: room on nodes, refusals, and an autoscaler that starts from a head without CPUs."""

import pytest
import ray

from d3hr_ray.pretraining.launch import find_gpus
from d3hr_ray.runtime import capacity
from d3hr_ray.runtime.actors import GROWING, find_actors
from d3hr_ray.runtime.capacity import Ask, claim, find_workers, room

HEAD = {"CPU": 0.0, "memory": 1e9}
GPU_NODE = {"CPU": 16.0, "GPU": 1.0}


class Cloud:
    """Nodes of a cluster, and an autoscaler that launches one of a kind as soon as something is asked that it holds."""

    def __init__(self, *nodes: dict[str, float], launches: dict[str, float] | None = None) -> None:
        self.resources, self.launches = list(nodes), launches
        self.asked: list[list[dict[str, float]]] = []
        self.launching = False

    def request(self, bundles: list[dict[str, float]]) -> None:
        self.asked.append(bundles)
        kind = self.launches or {}
        self.launching |= bool(bundles) and all(kind.get(name, 0) >= n for b in bundles for name, n in b.items())

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": node} for node in self.resources]

    def total(self) -> dict[str, float]:
        return {name: sum(node.get(name, 0) for node in self.resources) for name in ("CPU", "GPU")}


@pytest.fixture
def cluster(monkeypatch):
    def make(*nodes: dict[str, float], launches: dict[str, float] | None = None) -> Cloud:
        made = Cloud(*nodes, launches=launches)
        monkeypatch.setattr(ray, "nodes", made.nodes)
        monkeypatch.setattr(ray, "cluster_resources", made.total)
        monkeypatch.setattr(capacity, "request_resources", made.request)
        monkeypatch.setattr(capacity, "launching", lambda: made.launching)
        monkeypatch.setattr(capacity, "POLL", 0.01)
        return made

    return make


@pytest.mark.parametrize(
    ("share", "cpus", "fits"), [(0, 1, 6), (1, 0, 4), (0.6, 0, 4), (0.5, 0, 8), (1, 1, 2), (0.25, 2, 1), (2, 0, 2)]
)
def test_a_worker_must_fit_on_one_node_with_all_it_needs(cluster, share, cpus, fits):
    cluster({"CPU": 2, "GPU": 4}, {"CPU": 4})  # 2 CPUs beside the 4 GPUs
    assert room(share, cpus) == fits


WAYS = {
    "distill": lambda gpus, patience: find_actors((1, 8), gpus, patience),
    "sweep": lambda gpus, patience: find_actors((), gpus, patience),
    "evaluate": lambda gpus, patience: find_workers(None, gpus, 1, patience),
    "students of a sweep": lambda gpus, patience: claim(Ask(None, gpus, "--at-once", "--gpus-per-trial"), patience),
    "pretrain": lambda gpus, patience: find_gpus(2, gpus, patience),
}


@pytest.mark.parametrize("job", WAYS)
def test_every_job_gets_gpus_from_a_cluster_that_has_none_yet(cluster, job):
    cloud = cluster(HEAD, launches=GPU_NODE)
    WAYS[job](1.0, 5.0)
    assert cloud.launching and cloud.asked[-1] == []  # what is asked for is taken back: the workers ask for themselves
    assert cloud.asked[0][0]["GPU"] == 1


@pytest.mark.parametrize("job", WAYS)
def test_every_job_refuses_what_no_autoscaler_brings(cluster, job):
    cluster(HEAD, launches={"CPU": 16})
    with pytest.raises(ValueError, match=r"^--\S+ 1: the cluster has room for 0 \(one 1 GPU.*began to add none"):
        WAYS[job](1.0, 0.05)
    with pytest.raises(ValueError, match=r"^--\S+ 1: the cluster has room for 0 \(one 1 GPU"):
        WAYS[job](1.0, 0.0)


@pytest.mark.parametrize("job", WAYS)
def test_without_gpus_a_cluster_says_that_cpus_work_and_how_to_ask_for_gpus(cluster, caplog, job):
    cluster(HEAD, launches=GPU_NODE)
    WAYS[job](None, 5.0)
    assert "no node has a GPU, so CPUs do the work; give --gpus-per-" in caplog.text


def test_what_a_job_takes_from_a_growing_cluster(cluster):
    cluster(HEAD, launches=GPU_NODE)
    assert find_actors((), 1.0, 5.0).size == (1, GROWING)
    assert find_actors((2, 8), 1.0, 5.0).size == (2, 8)
    assert (find_workers(None, 1.0, 2, 5.0).count, find_workers(3, 1.0, 1, 5.0).count) == (2, 3)


def test_what_a_job_takes_from_a_cluster_that_stays(cluster):
    cluster({"CPU": 7, "GPU": 2}, {"CPU": 4})
    assert (find_actors((), None).size, find_actors((), 0).size, find_actors((1, 4), None).size) == (
        (2, 2),
        (10, 10),
        (1, 2),
    )
    workers = find_workers(None, None, 1)
    assert (workers.count, workers.gpus) == (2, 1.0)
    assert find_workers(None, 0, 2).count == 10  # of 11, a multiple of those that share a student
    assert find_workers(0, None, 1).count == 0
    with pytest.raises(ValueError, match="--workers 3: the cluster has room for 2"):
        find_workers(3, 1.0, 1)
    with pytest.raises(ValueError, match=r"--gpus-per-worker 0\.5 is idle"):
        find_workers(0, 0.5, 1)
