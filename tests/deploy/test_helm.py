"""The chart: linted, rendered over several values, held against Kubernetes' schemas, and its containers run."""

import base64
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from tools.go_tools import found

from apikeyrouter._version import __version__
from tests.cli.processes import SECONDS_MAX, wait_until
from tests.deploy.containers import dockerfile, process_environ
from tests.deploy.stack import placed
from tests.house.tree import ROOT
from tests.servers import binaries, free_port

HELM = found("helm")
VALUES = sorted(path.stem for path in (ROOT / "helm/ci").glob("*.yaml"))
KUBERNETES = ("1.27", "1.31", "1.36")
NOT_CORE = {"ServiceMonitor", "PrometheusRule"}
"""Of the Prometheus operator: no schema of them comes with Kubernetes'."""
needs_helm = pytest.mark.skipif(HELM is None, reason="helm is not here; where there is Go, make helm-check builds it")
SCALED_BY_NOTHING = "autoscaling.enabled=true,autoscaling.cpuUtilization=0"
Manifest = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(HELM), *arguments], capture_output=True, text=True, check=False, cwd=ROOT)


def rendered(values: str, *more: str, version: str = "1.31") -> list[Manifest]:
    told = helm("template", "rel", "helm", "-f", f"helm/ci/{values}.yaml", "--kube-version", version, *more)
    assert told.returncode == 0, told.stderr
    return [manifest for manifest in yaml.safe_load_all(told.stdout) if manifest]


PAGE = "-operator-page"


def the(kind: str, manifests: list[Manifest]) -> Manifest:
    """The only one of that kind, the operator's page left out."""
    (one,) = [one for one in manifests if one["kind"] == kind and not one["metadata"]["name"].endswith(PAGE)]
    return one


def router_of(manifests: list[Manifest]) -> tuple[Manifest, Manifest]:
    """The pod's spec, and its container's."""
    pod: Manifest = the("Deployment", manifests)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


@needs_helm
@pytest.mark.parametrize("values", VALUES)
def test_the_chart_passes_its_linter(values: str) -> None:
    told = helm("lint", "--strict", "helm", "-f", f"helm/ci/{values}.yaml", "--kube-version", "1.31")
    assert told.returncode == 0, told.stdout


@needs_helm
@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", VALUES)
def test_what_is_rendered_fits_the_schemas_of_kubernetes(values: str, version: str) -> None:
    manifests = rendered(values, version=version)
    for manifest in manifests:
        if manifest["kind"] not in NOT_CORE:
            kubernetes_validate.validate(manifest, version, strict=True)


@needs_helm
def test_everything_that_the_chart_can_make_is_made() -> None:
    kinds = {manifest["kind"] for values in VALUES for manifest in rendered(values)}
    assert kinds == {
        "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Service", "Ingress", "Secret", "ConfigMap",
        "NetworkPolicy", "ServiceMonitor", "PrometheusRule", "ServiceAccount", "StatefulSet", "Pod",
    }  # fmt: skip


@needs_helm
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "one store is needed"),
        (["--set", "redis.url=redis://a", "--set", "valkey.enabled=true"], "redis.url, valkey.enabled"),
        (["--set", "redis.url=redis://a"], "APIKEYROUTER_ENCRYPTION_KEY is needed"),
        (["--set", "redis.url=http://a"], "redis.url"),
        (["--set", "replicaCount=many"], "replicaCount"),
        (["--set", "replicas=3"], "replicas"),
        (["--set", "drainSeconds=-1"], "drainSeconds"),
        (["--set", "management.port=99999"], "management.port"),
        (["--set", "valkey.enabled=true,secret.existingSecret=a,management.port=8000"], "data plane's"),
        (["--set", "valkey.enabled=true,secret.existingSecret=a,secret.data.B=c"], "exclude each other"),
        (
            ["--set", "valkey.enabled=true,secret.existingSecret=a", "--set", SCALED_BY_NOTHING],
            "needs a measure",
        ),
    ],
)  # fmt: skip
def test_values_that_cannot_work_are_refused_by_name(arguments: list[str], complaint: str) -> None:
    told = helm("template", "rel", "helm", "--kube-version", "1.31", *arguments)
    assert told.returncode != 0
    assert complaint in told.stderr


@needs_helm
@pytest.mark.parametrize("values", VALUES)
def test_a_stopping_pod_has_time_for_its_hook_and_its_drain(values: str) -> None:
    pod, container = router_of(rendered(values))
    environ = {entry["name"]: entry.get("value") for entry in container["env"]}
    hook = container["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[0] == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= int(hook[1]) + int(environ["PROXY_DRAIN_SECONDS"]) + 15
    readiness = container["readinessProbe"]
    assert int(hook[1]) > readiness["periodSeconds"] * readiness["failureThreshold"]


@needs_helm
@pytest.mark.parametrize("values", VALUES)
def test_containers_may_do_nothing_and_write_nowhere_but_in_volumes(values: str) -> None:
    for manifest in rendered(values):
        pod = manifest.get("spec", {}).get("template", manifest).get("spec", {})
        for container in pod.get("containers", []):
            security = container["securityContext"]
            assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["automountServiceAccountToken"] is False


@needs_helm
def test_selectors_find_their_pods_and_monitors_their_service() -> None:
    manifests = rendered("everything")
    labels = the("Deployment", manifests)["spec"]["template"]["metadata"]["labels"]
    service = next(one for one in manifests if one["kind"] == "Service" and not one["metadata"]["name"].endswith(PAGE))
    assert service["spec"]["selector"].items() <= labels.items()
    assert the("PodDisruptionBudget", manifests)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert the("NetworkPolicy", manifests)["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    monitor = the("ServiceMonitor", manifests)["spec"]
    inner = next(one for one in manifests if one["metadata"]["name"].endswith("-management"))
    assert inner["spec"]["selector"].items() <= labels.items()
    assert monitor["selector"]["matchLabels"].items() <= inner["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == inner["spec"]["ports"][0]["name"]
    other = next(one for one in rendered("everything", "--set", "management.port=0") if one["kind"] == "ServiceMonitor")
    assert other["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert other["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    rule = the("PrometheusRule", manifests)["spec"]
    assert rule == yaml.safe_load((ROOT / "helm/files/alerts.yml").read_text())
    scaled = the("HorizontalPodAutoscaler", manifests)["spec"]
    assert scaled["scaleTargetRef"]["name"] == the("Deployment", manifests)["metadata"]["name"]
    assert "replicas" not in the("Deployment", manifests)["spec"]
    measured = [one["pods"]["metric"]["name"] for one in scaled["metrics"] if one["type"] == "Pods"]
    assert measured == ["apikeyrouter_inflight"]


@needs_helm
def test_the_operators_page_finds_its_pod_and_asks_the_management_service() -> None:
    manifests = rendered("everything")
    pages = {one["kind"]: one for one in manifests if one["metadata"]["name"].endswith(PAGE)}
    template = pages["Deployment"]["spec"]["template"]
    assert pages["Service"]["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    inner = next(one for one in manifests if one["metadata"]["name"].endswith("-management"))
    asked = f"--url=http://{inner['metadata']['name']}:{inner['spec']['ports'][0]['port']}"
    (container,) = template["spec"]["containers"]
    assert asked in container["args"]
    assert "env" not in container
    assert "envFrom" not in container
    let_in = [rule["from"] for rule in the("NetworkPolicy", manifests)["spec"]["ingress"] if "from" in rule]
    wanted = {"app.kubernetes.io/component": "operator-page"}.items()
    assert any(
        wanted <= peer["podSelector"]["matchLabels"].items()
        for peers in let_in
        for peer in peers
        if "podSelector" in peer
    )


@needs_helm
def test_management_has_a_door_that_neither_ingress_nor_load_balancer_leads_to() -> None:
    manifests = rendered("everything")
    _, container = router_of(manifests)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    environ = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environ["PROXY_MANAGEMENT_PORT"] == str(ports["management"]) == "8001"
    assert environ["PROXY_MANAGEMENT_HOST"] == "0.0.0.0"
    services = {one["metadata"]["name"]: one["spec"] for one in manifests if one["kind"] == "Service"}
    assert services["router-management"]["type"] == "ClusterIP"
    assert [port["targetPort"] for port in services["router"]["ports"]] == ["http"]
    backends = {
        path["backend"]["service"]["name"]
        for rule in the("Ingress", manifests)["spec"]["rules"]
        for path in rule["http"]["paths"]
    }
    assert backends == {"router"}
    allowed = {
        port["port"]: one.get("from")
        for one in the("NetworkPolicy", manifests)["spec"]["ingress"]
        for port in one["ports"]
    }
    assert allowed["management"] != allowed["http"]
    assert "PROXY_MANAGEMENT_PORT" not in {entry["name"] for entry in router_of(rendered("minimal"))[1]["env"]}


@needs_helm
def test_a_changed_configuration_rolls_the_pods_over() -> None:
    def checksum(*more: str) -> str:
        metadata = the("Deployment", rendered("bundled", *more))["spec"]["template"]["metadata"]
        return str(metadata["annotations"]["checksum/config"])

    assert checksum() == checksum()
    assert checksum() != checksum("--set", "config.routing.objective=cost")


def test_the_chart_has_the_version_of_what_it_installs() -> None:
    assert yaml.safe_load((ROOT / "helm/Chart.yaml").read_text())["appVersion"] == __version__


# --- containers, run


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[int]:
    """The bundled Valkey's container: its command and arguments, on a free port."""
    (container,) = the("StatefulSet", rendered("bundled"))["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["valkey-server"]
    port = free_port()
    arguments = [part.replace("/data", str(tmp_path)) for part in container["args"]]
    server = str(next(iter(binaries().values())))
    process = subprocess.Popen([server, *arguments, "--port", str(port), "--bind", "127.0.0.1"], cwd=tmp_path)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(SECONDS_MAX)


@needs_helm
def test_the_routers_container_starts_is_probed_serves_and_stops_as_rendered(valkey: int, tmp_path: Path) -> None:
    manifests = rendered("bundled")
    _, container = router_of(manifests)
    port = str(free_port())
    config = tmp_path / "router.yaml"
    config.write_text(the("ConfigMap", manifests)["data"]["router.yaml"])
    environ = process_environ(
        dockerfile()[-1].environ,
        {entry["name"]: entry["value"] for entry in container["env"]},
        the("Secret", manifests)["stringData"],
        {"PROXY_PORT": port, "APIKEYROUTER_CONFIG": config, "REDIS_URL": f"redis://127.0.0.1:{valkey}/0"},
    )
    assert container["args"] == ["serve"]
    command = [placed(part) for part in (*dockerfile()[-1].command("ENTRYPOINT"), *container["args"])]
    process = subprocess.Popen(command, env=environ, cwd=tmp_path)
    try:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == container["ports"][0]["name"]
            wait_until(lambda path=asked["path"]: process.poll() is None and _status(port, path) == 200)  # type: ignore[misc]
        token = {"authorization": "Bearer app-token-of-the-chart"}
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=token).status_code == 200
        test_pod = next(one for one in manifests if one["kind"] == "Pod")["spec"]["containers"][0]["command"]
        address = test_pod.pop()
        assert address == f"{the('Deployment', manifests)['metadata']['name']}:80"
        tested = subprocess.run([*map(placed, test_pod), f"127.0.0.1:{port}"], check=False, env=environ)
        assert tested.returncode == 0
        assert shutil.which(container["lifecycle"]["preStop"]["exec"]["command"][0]) is not None
        process.terminate()
        assert process.wait(SECONDS_MAX) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _status(port: str, path: str) -> int:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}").status_code
    except httpx.TransportError:
        return 0


def test_the_key_of_the_example_values_is_one_that_a_router_takes() -> None:
    secret = yaml.safe_load((ROOT / "helm/ci/bundled.yaml").read_text())["secret"]["data"]
    assert len(base64.b64decode(secret["APIKEYROUTER_ENCRYPTION_KEY"])) == 32
