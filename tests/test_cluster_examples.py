"""The examples for SLURM and Kubernetes: what they start, with which settings, and what they leave behind."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import yaml

from bircher.config.config import compose

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "cluster"
SCRIPT = EXAMPLES / "slurm.sh"
COMMANDS = {
    "ray": 'echo "ray $RAY_AUTH_MODE $*" >> calls; [[ $1 == start ]] && exec sleep 30; exit 0',
    "srun": 'while [[ $1 == --* ]]; do echo "srun $1" >> calls; shift; done; exec "$@"',
    "hostname": "echo 10.0.0.1",
    "bircher": 'trap "echo saved >> calls; exit 143" TERM; echo "bircher $*" >> calls; for _ in $(seq "$LENGTH"); do '
    'sleep 0.1; done; until [[ $(grep -c "ray token start" calls) -ge 2 ]]; do sleep 0.1; done',
}
"""Stand-ins for the programs of a cluster, which write down how they were called."""


def submit(folder: Path, *words: str, tenths: int = 0) -> subprocess.Popen[bytes]:
    """Start the script as SLURM would on the first of two nodes, with a run that lasts so many tenths of a second."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, body in COMMANDS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "4", "SLURMD_NODENAME": "one"}
    environment = {**os.environ, **job, "LENGTH": str(tenths), "PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", str(SCRIPT), *words], cwd=folder, env=environment, start_new_session=True)


def calls(folder: Path, command: str) -> list[str]:
    """Return how a program was called."""
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return [line for line in lines if line.startswith(command)]


def test_a_job_makes_a_cluster_and_a_run_and_continues_it(tmp_path: Path) -> None:
    words = ["runs/lander", "CartPole-v1", "ray.workers=8", "env.num_envs=8"]
    assert submit(tmp_path, *words).wait() == 0
    head, *_, other = calls(tmp_path, "ray token start")
    assert "--head" in head and "--node-ip-address=10.0.0.1 --port=6379 --num-cpus=4" in head
    assert "--address=10.0.0.1:6379" in other and "srun --exclude=one" in calls(tmp_path, "srun")
    settings = "ray.workers=8 env.num_envs=8 loop=ray --out runs/lander ray.address=10.0.0.1:6379"
    assert calls(tmp_path, "bircher") == [f"bircher train CartPole-v1 {settings}"]
    assert not list(tmp_path.glob(".ray-token*")), "the token does not outlive the job"
    (tmp_path / "runs" / "lander").mkdir(parents=True)
    (tmp_path / "runs" / "lander" / "config.yaml").touch()
    assert submit(tmp_path, *words).wait() == 0
    assert calls(tmp_path, "bircher")[1] == "bircher train --resume runs/lander ray.address=10.0.0.1:6379"


def test_the_signal_before_the_end_of_a_job_lets_the_run_save(tmp_path: Path) -> None:
    job = submit(tmp_path, "runs/lander", "CartPole-v1", tenths=300)
    while not calls(tmp_path, "bircher"):
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(job.pid, signal.SIGUSR1)
    assert job.wait(timeout=20) == 143 and calls(tmp_path, "saved") == ["saved"]


def test_the_job_in_kubernetes_has_a_core_for_each_worker() -> None:
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cores = group["replicas"] * int(container["resources"]["requests"]["cpu"])
    _, _, script = shlex.split(job["spec"]["entrypoint"])
    train = shlex.split(script.split("else exec bircher train ")[1].split(";")[0])
    env, words = train[0], [word for word in train[1:] if "=" in word]
    config = compose(env, words)
    assert config.loop.name == "ray" and config.ray.workers == cores <= config.env.num_envs
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    mounted = head["volumeMounts"][0]["mountPath"]
    assert script.count(f"{mounted}/lander") == 3 and f"--resume {mounted}/lander ray.address=auto" in script


def test_the_command_in_the_script_is_accepted() -> None:
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("#   sbatch slurm.sh runs")]
    _, _, _, _, env, *words = line.split()
    assert compose(env, [*words, "loop=ray"]).ray.workers == 64
