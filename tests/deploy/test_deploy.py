"""The files of `deploy/`: valid by the schemas of what reads them, and true to what our programs take and need."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from compose_pydantic import ComposeSpecification
from tests.collector import capture_process

from spanloop.main import cli
from spanloop_collector import capture, supervisor

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted(DEPLOY.glob("kubernetes/*.yaml"))
WORKLOADS = ("node-agent.yaml", "sidecar.yaml")
# Native sidecars are on by default from 1.29 on.
KUBERNETES = ("1.29", "1.37")
COLLECTOR_PORT = 4318
STOP_S = 2 * supervisor._STOP_S  # gateway, then capture

each_workload = pytest.mark.parametrize("name", WORKLOADS)


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def pod(name: str) -> dict[str, Any]:
    (workload,) = documents(DEPLOY / "kubernetes" / name)
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def containers(name: str) -> Iterator[dict[str, Any]]:
    spec = pod(name)
    yield from spec.get("initContainers", [])
    yield from spec["containers"]


def collector(name: str) -> dict[str, Any]:
    (found,) = [container for container in containers(name) if container["name"] == "collector"]
    return found


def up_options(words: list[str]) -> dict[str, Any]:
    """What the real command line makes of them; fails where it does not know one."""
    assert words[0] == "up"
    command = cli.get_command(click.Context(cli), "up")
    assert command is not None
    return command.make_context("up", list(words[1:])).params


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(path: Path, version: str) -> None:
    found = documents(path)
    assert found
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_would_notice() -> None:
    (workload,) = documents(DEPLOY / "kubernetes" / "node-agent.yaml")
    workload["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 90
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(workload, KUBERNETES[0], strict=True)


@each_workload
def test_containers_have_as_few_rights_as_they_can(name: str) -> None:
    spec = pod(name)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    for container in containers(name):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["limits"]["memory"]
        if container["name"] == "own-the-log":
            assert context["capabilities"]["add"] == ["CHOWN"]
        else:
            assert context.get("runAsUser", spec["securityContext"]["runAsUser"]) != 0


@each_workload
def test_the_collector_gets_what_it_needs(name: str) -> None:
    container = collector(name)
    options = up_options(container["args"])
    assert options["host"] == "0.0.0.0"
    log = options["log"]
    mounts = {Path(mount["mountPath"]): mount["name"] for mount in container["volumeMounts"]}
    home = next(path for path in mounts if path in log.parents)
    # The engine's cache and the home lie there too; nothing else can be written to.
    assert Path(container["workingDir"]) == home
    (workload,) = documents(DEPLOY / "kubernetes" / name)
    claims = [claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])]
    lasting = [volume["name"] for volume in pod(name)["volumes"] if "hostPath" in volume]
    assert mounts[home] in claims + lasting
    assert {port["containerPort"] for port in container["ports"]} == {4317, COLLECTOR_PORT}
    assert container["startupProbe"]["httpGet"] == {"path": "/metrics", "port": "otlp-http"}
    assert container["livenessProbe"]["tcpSocket"] == {"port": "otlp-http"}
    # Two segments of 64 MiB at once in Python's hands, and 256 MiB of requests, before the gateway.
    assert container["resources"]["limits"]["memory"] == "2Gi"


def test_a_full_disk_restarts_nothing(tmp_path: Path) -> None:
    """/healthz says 503 then; what a restart follows from must not."""
    with capture_process.running(tmp_path / "s", "--min-free", str(1 << 60)) as running:
        answers = {}
        for path in ("/healthz", *(collector(name)["startupProbe"]["httpGet"]["path"] for name in WORKLOADS)):
            try:
                with urllib.request.urlopen(running.otlp_http + path, timeout=20) as answer:
                    answers[path] = answer.status
            except urllib.error.HTTPError as error:
                answers[path] = error.code
    assert answers == {"/healthz": 503, "/metrics": 200}


@each_workload
def test_there_is_time_to_stop(name: str) -> None:
    least = capture.STOP_S + capture._HTTP_GRACE_S + capture._GRPC_GRACE_S
    assert pod(name)["terminationGracePeriodSeconds"] >= max(STOP_S, least)


@each_workload
def test_secrets_come_from_the_secret(name: str) -> None:
    (secret,) = documents(DEPLOY / "kubernetes" / "secret.example.yaml")
    for container in containers(name):
        for variable in container.get("env", []):
            if variable["name"] not in ("SPANLOOP_TOKEN", "SPANLOOP_STORE"):
                continue
            reference = variable["valueFrom"]["secretKeyRef"]
            assert reference["name"] == secret["metadata"]["name"]
            assert reference["key"] in secret["stringData"]
    assert secret["stringData"]["token"] == "CHANGE-ME"


@each_workload
def test_prometheus_finds_the_collector(name: str) -> None:
    (workload,) = documents(DEPLOY / "kubernetes" / name)
    annotations = workload["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(COLLECTOR_PORT),
        "prometheus.io/path": "/metrics",
    }


def check_agent(variables: list[dict[str, Any]], host: str) -> None:
    """An agent's variables: the endpoint, the token, and names that stand above their use."""
    defined: set[str] = set()
    values = {}
    for variable in variables:
        for used in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
            assert used in defined, f"{variable['name']} uses {used} before it is defined"
        defined.add(variable["name"])
        values[variable["name"]] = variable.get("value", "")
    assert values["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://{host}:{COLLECTOR_PORT}"
    assert values["OTEL_EXPORTER_OTLP_HEADERS"] == "authorization=Bearer%20$(SPANLOOP_TOKEN)"


def test_an_agent_beside_its_collector() -> None:
    spec = pod("sidecar.yaml")
    assert collector("sidecar.yaml")["restartPolicy"] == "Always"
    (agent,) = spec["containers"]
    check_agent(agent["env"], "127.0.0.1")
    mounted = {mount["name"] for mount in agent["volumeMounts"]}
    assert {"spool", "tmp"} <= mounted & {volume["name"] for volume in spec["volumes"]}


def test_an_agent_finds_the_collector_of_its_node() -> None:
    text = (DEPLOY / "kubernetes" / "node-agent.yaml").read_text(encoding="utf-8")
    shown = [line[1:] for line in text.splitlines() if line.startswith("#   ")]
    (variables,) = yaml.safe_load("\n".join(shown)).values()
    assert variables[0]["valueFrom"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
    check_agent(variables, "$(NODE_IP)")
    ports = {port["containerPort"]: port["hostPort"] for port in collector("node-agent.yaml")["ports"]}
    assert ports == {4317: 4317, COLLECTOR_PORT: COLLECTOR_PORT}


def test_compose() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    ComposeSpecification.model_validate(found)
    service = found["services"]["collector"]
    up_options(service["command"])
    # What `docker compose exec` starts has the variables of the container, and none of its options.
    assert "--store" not in service["command"]
    default = re.fullmatch(r"\$\{SPANLOOP_STORE:-(.+)\}", service["environment"]["SPANLOOP_STORE"])
    assert default
    assert default[1].startswith("chdb:///var/lib/spanloop/")
    assert service["volumes"] == ["state:/var/lib/spanloop"]
    assert service["read_only"] is True
    assert "?" in service["environment"]["SPANLOOP_TOKEN"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert int(service["stop_grace_period"].removesuffix("s")) >= STOP_S
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()


def test_the_image() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#") and line[0] != " "]
    root = DEPLOY.parent
    extras = next(rest.removeprefix("EXTRAS=") for word, rest in steps if word == "ARG")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extras in project["optional-dependencies"]
    assert any(word == "RUN" and '".[$EXTRAS]"' in rest for word, rest in steps)
    for word, rest in steps:
        if word == "COPY" and not rest.startswith("--from"):
            assert all((root / source).exists() for source in rest.split()[:-1]), rest
    last = dict((word, rest) for word, rest in steps)  # noqa: C402  # the last of a word counts
    assert last["USER"] == "10001:10001"
    assert last["WORKDIR"] == last["VOLUME"] == "/var/lib/spanloop"
    assert up_options(yaml.safe_load(last["CMD"]))["host"] == "0.0.0.0"
    for name in WORKLOADS:
        assert pod(name)["securityContext"]["runAsUser"] == 10001


def unit() -> ConfigParser:
    found = ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment, method-assign]  # systemd's names have capitals
    found.read(DEPLOY / "systemd" / "spanloop.service")
    return found


def test_the_unit_runs_what_exists_and_waits_for_its_end() -> None:
    service = unit()["Service"]
    words = service["ExecStart"].split()
    assert Path(words[0]).name == "spanloop"
    state = Path("/var/lib") / service["StateDirectory"]
    assert state in up_options(words[1:])["log"].parents
    assert Path(service["WorkingDirectory"]) == state
    assert int(service["TimeoutStopSec"]) >= STOP_S
    assert service["KillMode"] == "mixed"
    assert "SPANLOOP_TOKEN" not in service["Environment"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "spanloop.service").read_text(encoding="utf-8")
    # It wants the program to exist.
    copy = tmp_path / "spanloop.service"
    copy.write_text(text.replace("/opt/spanloop/bin/spanloop", "/bin/true"))
    command = ["systemd-analyze", "verify", "--recursive-errors=no", str(copy)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in checked.stderr.splitlines() if "spanloop.service" in line]
    assert (checked.returncode, complaints) == (0, []), checked.stderr
