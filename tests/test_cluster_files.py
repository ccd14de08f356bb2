"""cluster/: valid for the tools that read it, closed to the outside, and of the Ray version that is pinned."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from conftest import ROOT
from ray.autoscaler._private.util import fillout_defaults, validate_config

from d3hr_ray.runtime.telemetry import metrics

FOLDER = ROOT / "cluster"
PINNED = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]
CLOUDS = ("aws", "gcp")
LAUNCHERS = (*CLOUDS, "local")

# The fields of KubeRay 1.7's custom resources that our manifests use (its CRD is 1.4 MB and not ours to ship).
CLUSTER_FIELDS = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
}  # fmt: skip
JOB_FIELDS = {
    "entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
    "activeDeadlineSeconds", "rayClusterSpec",
}  # fmt: skip
GROUP_FIELDS = {"groupName", "minReplicas", "maxReplicas", "replicas", "rayStartParams", "labels", "template"}


def launcher(name: str) -> dict:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def manifests() -> dict[str, dict]:
    """Kind => resource of both manifest files; others than Ray's as FILE-KIND-NAME."""
    found = {}
    for name in ("raycluster", "rayjob"):
        for document in yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()):
            kind, own = document["kind"], document["metadata"]["name"]
            found[kind if kind.startswith("Ray") else f"{name}-{kind}-{own}"] = document
    return found


def cluster_specs() -> list[dict]:
    found = manifests()
    return [found["RayCluster"]["spec"], found["RayJob"]["spec"]["rayClusterSpec"]]


def pods() -> list[dict]:
    groups = [[spec["headGroupSpec"], *spec["workerGroupSpecs"]] for spec in cluster_specs()]
    return [group["template"]["spec"] for spec in groups for group in spec]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_pass_rays_schema_and_checks(name):
    config = launcher(name)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(fillout_defaults(copy.deepcopy(config)))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"max_workerz": 1}, schema)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_node_asks_for_the_token_and_the_dashboard_stays_inside(name):
    config = launcher(name)
    starts = [c for key in ("head", "worker") for c in config[f"{key}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token ray start" in c for c in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert list(config["file_mounts"].values()) == ["~/.ray/auth_token"]


@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_nodes_are_unreachable_from_outside(name):
    config = launcher(name)
    assert config["provider"]["use_internal_ips"] is True
    for node in config["available_node_types"].values():
        if name == "aws":  # else the launcher makes a group that opens port 22 to 0.0.0.0/0
            assert node["node_config"]["SecurityGroupIds"] == ["SECURITY-GROUP"]
            assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        else:
            assert all("accessConfigs" not in i for i in node["node_config"]["networkInterfaces"])
    assert "security_group" not in config["provider"]


@pytest.mark.parametrize("name", CLOUDS)
def test_clouds_scale_gpus_from_zero_spot_first_and_let_idle_nodes_go(name):
    config = launcher(name)
    types = config["available_node_types"]
    gpus = {k: v for k, v in types.items() if v["resources"].get("GPU")}
    assert [v["labels"]["ray.io/market-type"] for v in gpus.values()] == ["spot", "on-demand"]
    assert all(v["min_workers"] == 0 < v["max_workers"] for v in types.values() if v is not types["head"])
    spot = {k for k, v in types.items() if re.search("spot", json.dumps(v["node_config"]), re.I)}
    assert spot == {"gpu_spot", "cpu"}
    assert types["head"]["resources"] == {"CPU": 0}
    assert 0 < config["idle_timeout_minutes"] <= 30


def test_versions_agree_with_the_constraints():
    assert ray.__version__ == PINNED
    assert f"FROM rayproject/ray:{PINNED}-py311" in (FOLDER / "Dockerfile").read_text()
    assert all(spec["rayVersion"] == PINNED for spec in cluster_specs())
    images = [launcher(name)["docker"]["image"] for name in CLOUDS]
    images += [c["image"] for pod in pods() for c in pod["containers"]]
    assert len(images) == 10 and set(images) == {f"REGISTRY/d3hr-ray:ray{PINNED}"}


def test_the_manifests_use_fields_that_kuberay_has():
    job = manifests()["RayJob"]
    assert {m["apiVersion"] for k, m in manifests().items() if k.startswith("Ray")} == {"ray.io/v1"}
    assert set(job["spec"]) <= JOB_FIELDS
    for spec in cluster_specs():
        assert set(spec) <= CLUSTER_FIELDS
        assert set(spec["headGroupSpec"]) <= {"serviceType", "rayStartParams", "template"}
        assert set(spec["autoscalerOptions"]) <= {"version", "idleTimeoutSeconds", "upscalingMode"}
        for group in spec["workerGroupSpecs"]:
            assert set(group) <= GROUP_FIELDS
            assert all(isinstance(v, str) for v in group["rayStartParams"].values())
    assert job["spec"]["backoffLimit"] >= 1  # a driver lost with its node starts again and resumes


def test_kubernetes_scales_gpus_from_zero_and_asks_for_the_token():
    for spec in cluster_specs():
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["enableInTreeAutoscaling"] is True and 0 < spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 1800
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert [g["groupName"] for g in spec["workerGroupSpecs"]] == ["gpu-spot", "gpu-on-demand", "cpu"]
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
            pod = group["template"]["spec"]
            gpu = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
            assert gpu == ("tolerations" in pod) == group["groupName"].startswith("gpu")
            assert pod["terminationGracePeriodSeconds"] > 0 and pod["automountServiceAccountToken"] is False


def test_no_pod_is_privileged_or_shares_its_node():
    assert len(pods()) == 8
    for pod in pods():
        assert not any(pod.get(k) for k in ("hostNetwork", "hostPID", "hostIPC"))
        assert not any("hostPath" in v for v in pod["volumes"])
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
        for container in pod["containers"]:
            secure = container["securityContext"]
            assert (secure["privileged"], secure["allowPrivilegeEscalation"], secure["runAsNonRoot"]) == (
                False,
                False,
                True,
            )
            assert container["resources"]["requests"] == container["resources"]["limits"]
    for name in ("raycluster-NetworkPolicy-d3hr-ray", "rayjob-NetworkPolicy-d3hr-ray"):
        policy = manifests()[name]
        own, operator, prometheus = policy["spec"]["ingress"]
        assert [port["port"] for port in prometheus["ports"]] == [8080]
        assert policy["kind"] == "NetworkPolicy" and own == {"from": [{"podSelector": {}}]}
        (peer,) = operator["from"]  # of any namespace, by the label that KubeRay's chart gives its pods
        assert peer["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}
        assert peer["namespaceSelector"] == {} and [port["port"] for port in operator["ports"]] == [8265]


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_a_manifest_brings_the_accounts_that_its_pods_have(name):
    """KubeRay makes none for the autoscaler, nor Kubernetes for a pod that names one."""
    accounts = {m["metadata"]["name"] for k, m in manifests().items() if k.startswith(f"{name}-ServiceAccount-")}
    assert accounts == {pod["serviceAccountName"] for pod in pods()} == {"d3hr-ray", "d3hr-ray-worker"}


def test_a_jobs_python_is_the_repositorys_on_machines_of_ones_own():
    """Ray runs a job by a shell, with the PATH that it was started with."""
    config = launcher("local")
    starts = [c for key in ("head", "worker") for c in config[f"{key}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2 and all(c.startswith("export PATH=$HOME/d3hr_ray/.venv/bin:$PATH; ") for c in starts)


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda p: p.name)
def test_nothing_secret_or_open_is_written_down(path):
    code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
    for bad in (
        "0.0.0.0",
        "::/0",
        "AKIA",
        "privileged: true",
        "--privileged",
        "LoadBalancer",
        "NodePort",
        "RAY_AUTH_TOKEN=",
    ):
        assert bad not in code
    assert not re.search(r"aws_(access_key|secret)|password|:latest|RAY_AUTH_MODE=disabled", code, re.I)


def test_the_board_draws_metrics_that_exist():
    board = json.loads((FOLDER / "grafana.json").read_text())
    drawn = {n for p in board["panels"] for t in p["targets"] for n in re.findall(r"ray_d3hr_\w+", t["expr"])}
    made = {f"ray_{m.info['name']}" for m in metrics().values()}
    assert {n.removesuffix("_bucket") for n in drawn} == made
    assert {s["name"] for s in board["templating"]["list"]} == {"datasource"}
