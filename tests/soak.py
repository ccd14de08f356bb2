"""A long run under random kills: `python tests/soak.py --images 200000 --minutes 15` prints its measurements as JSON.

The digits, repeated, go through jobs/distill.py with a stub of a model (one layer, random weights), while actors are
killed at random. Fails unless every image is counted once and the driver's memory stays flat.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel
from simulated import cluster

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.listing import list_images

ROOT = Path(__file__).parent.parent
Sample = dict[str, float]
FLAT = 1.1  # most that the driver's memory may grow from a third of the run to its end


def write_stub(folder: Path) -> None:
    """A DiTPipeline of one layer and random weights: images 16x16, latents 1x16x16, 10 classes."""
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), latent_channels=1, norm_num_groups=2, sample_size=16)
    dit = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, in_channels=1, out_channels=2, num_layers=1, norm_num_groups=4,
        sample_size=16, patch_size=4, num_embeds_ada_norm=10,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    dit.save_pretrained(folder / "transformer")
    DDIMScheduler(beta_schedule="linear", beta_end=0.02, clip_sample=False).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')


def write_digits(folder: Path, count: int) -> int:
    """At least `count` digits in Parquet files, the training split again and again. Returns how many."""
    found = list_images(DataConfig("digits"), 10, None)
    images, labels = list(found.source.read(found.entries)), found.entries["label"].to_pylist()
    copies = -(-count // len(images))
    folder.mkdir()
    table = pa.table({"image": images, "label": [str(label) for label in labels]})
    for k in range(copies):
        pq.write_table(table, folder / f"copy-{k:04d}.parquet")
    return copies * len(images)


def memory(driver: psutil.Process) -> Sample:
    """Resident MiB of the driver, of its largest actor, and of all processes of its Ray."""
    sizes, actors = [], [0]
    for process in psutil.Process().children(recursive=True):
        try:
            size = process.memory_info().rss
            actors += [size] if is_actor(process) else []
            sizes.append(size)
        except psutil.NoSuchProcess:
            continue
    return {"driver": driver.memory_info().rss / 2**20, "actor": max(actors) / 2**20, "all": sum(sizes) / 2**20}


def is_actor(process: psutil.Process) -> bool:
    try:
        return any("InvertShard" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def soak(
    run: subprocess.Popen, seconds: float, pause: float, draw: random.Random
) -> tuple[int, list[dict[str, float]]]:
    """Kill a random actor every `pause` seconds or so while time is left; sample memory until the run ends."""
    driver, begun, kills, samples = psutil.Process(run.pid), time.monotonic(), 0, []
    following = begun + pause
    while run.poll() is None:
        time.sleep(5)
        now = time.monotonic()
        try:
            samples.append({"at": round(now - begun)} | {k: round(v) for k, v in memory(driver).items()})
            actors = [p for p in psutil.Process().children(recursive=True) if is_actor(p)]
        except psutil.NoSuchProcess:
            continue
        if actors and following < now < begun + seconds:
            draw.choice(actors).send_signal(signal.SIGKILL)
            kills += 1
            following = now + draw.uniform(0.5, 1.5) * pause
    return kills, samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--pause", type=float, default=45, help="mean seconds between kills")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_stub(root / "stub")
        listed = write_digits(root / "data", flags.images)
        command = f"--preset digits --data {root}/data --model {root}/stub --timesteps 20 --inversion-guidance 1"
        command += f" --ipc 1 --actors 2 2 --out {root}/run"
        begun = time.monotonic()
        with open(root / "log", "w") as log, cluster(workers=2) as made:
            env = os.environ | {"RAY_ADDRESS": made.address}
            run = subprocess.Popen([sys.executable, "jobs/distill.py", *command.split()], cwd=ROOT, stderr=log, env=env)
            kills, samples = soak(run, flags.minutes * 60, flags.pause, random.Random(0))
        assert run.returncode == 0, (root / "log").read_text()[-3000:]
        record = json.loads((root / "run" / "run.json").read_text())
        ids = pq.read_table(root / "run" / "latents", columns=["image_id"])["image_id"]
        fitted = sum(pq.read_table(root / "run" / "gaussians")["count"].to_pylist())
        third, last = samples[len(samples) // 3], samples[-2]
        result = {
            "images": listed,
            "accepted": record["counts"]["accepted"],
            "rejected": record["counts"]["rejected"],
            "lost": listed - len(ids),
            "duplicated": len(ids) - len(ids.unique()),
            "in_gaussians": fitted,
            "kills": kills,
            "retries": {s["stage"]: s["retries"] for s in record["stages"]},
            "minutes": round((time.monotonic() - begun) / 60, 1),
            "memory_mib": [samples[len(samples) * k // 8] for k in range(8)] + [last],
        }
    print(json.dumps(result))
    assert result["accepted"] == listed == fitted and not result["lost"] and not result["duplicated"]
    assert last["driver"] < FLAT * third["driver"], (third, last)


if __name__ == "__main__":
    main()
