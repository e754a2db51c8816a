"""The job for SLURM in USAGE.md, on two machines that are this one: stopped, queued again and resumed."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import train
from conftest import ROOT, losses, saved

import pytest
from processes import lines_of, needs_proc, wait_until

# what the job calls; SIGTERM makes srun kill its tasks, as SLURM's does
TOOLS = {
    "srun": """trap 'kill -KILL $(cat tasks)' TERM
"$@" & echo $! > tasks
"$@" & echo $! >> tasks
for task in $(cat tasks); do wait $task; status=$?; done
exit $status""",
    "scancel": """[ "$*" = "--signal=TERM 7" ] && kill -TERM $(cat tasks)""",
    "scontrol": """case $1 in show) echo localhost; echo other;; requeue) echo "$2" >> requeued;; esac""",
    "torchrun": f"""exec {sys.executable} -m torch.distributed.run "$@" """,
}
SAME = dict(dtype="float64", schedule="constant")


@pytest.fixture
def job(workplace, monkeypatch):
    """job(steps) starts the script of USAGE.md with a small run, out/job, and one process a machine."""
    for name, commands in TOOLS.items():
        Path(name).write_text(f"#!/bin/bash\n{commands}\n")
        Path(name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}:{os.environ['PATH']}")
    for name, value in {"JOB_ID": "7", "NNODES": "2", "JOB_NODELIST": "two"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    usage = (ROOT / "USAGE.md").read_text(encoding="utf-8")
    text = re.search(r"```bash\n(#!/bin/bash\n.*?)```", usage, re.DOTALL)[1]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    flags = " ".join(f"--{name}={value}" for name, value in SAME.items())
    run = f"{ROOT}/train.py tiny.py --run=job {flags} --max_steps=$STEPS"
    changes = {"nproc_per_node=4": "nproc_per_node=1", "29500": port, "train.py config/hgrn2_10m.py": run}
    for there, here in changes.items():
        assert text.count(there) == 1
        text = text.replace(there, here)
    Path("job.sh").write_text(text)
    started = []

    def start(steps):
        started.append(subprocess.Popen(["bash", "job.sh"], env=os.environ | {"STEPS": str(steps)}))
        return started[-1]

    yield start
    for process in started:
        process.terminate()  # if it still runs
        process.wait(timeout=60)


@needs_proc
def test_the_readmes_job_saves_before_its_time_limit_queues_again_and_resumes(job, tiny, request):
    """Two torchruns: float64 losses are within 1e-9 of one process's; a job that has ended is not queued again."""
    if not request.config.getoption("--long"):
        pytest.skip("twenty seconds of torchrun's: with --long")
    first = job(100_000)
    assert wait_until(lambda: lines_of("job") > 5, first)
    first.terminate()
    assert first.wait(timeout=60) == 1 and Path("requeued").read_text() == "7\n"
    steps = saved(run="job")["step"] + 5
    assert job(steps).wait(timeout=60) == 0 and Path("requeued").read_text() == "7\n"
    train.main(tiny(run="one", max_steps=steps, **SAME))
    assert losses("job") == pytest.approx(losses("one"), abs=1e-9) and len(losses("job")) == steps
