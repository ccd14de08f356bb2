"""What a run must have to be extended (--extend), asked before torch and Ray are imported."""

from d3hr_ray.config import RunConfig, from_dict
from d3hr_ray.datasets.look import STORED, look_of
from d3hr_ray.filesystems import is_same_place
from d3hr_ray.layout import GAUSSIANS, RUN, finished, latents_file
from d3hr_ray.models.card import ModelCard
from d3hr_ray.runs import read_run
from d3hr_ray.store import Store


def check_extended(run: Store, out: Store, config: RunConfig, card: ModelCard) -> None:
    """Raise ValueError for a run whose latents cannot be those of a run in `out` with this config and model."""
    record, done = read_run(run), finished(run)
    if is_same_place(run.uri, out.uri) or (out.exists(RUN) and read_run(out) == record):  # by way of a link, too
        raise ValueError(f"--out {out.uri} is the run that --extend names, which stays as it is; give another folder")
    inputs, inverted = record["inputs"], sum(counts["accepted"] + counts["rejected"] for counts in done.values())
    if not from_dict(record["config"]).fits or (not done and run.list(GAUSSIANS)):
        raise ValueError(
            f"--extend {run.uri}: it has no latents/ of images. A run --from-gaussians or of another method inverts "
            "none: name the run that did, or leave --extend out"
        )
    if inverted != inputs["images"]:
        raise ValueError(
            f"--extend {run.uri}: it is unfinished, {inverted:,} of {inputs['images']:,} images are inverted; the "
            "command that began it resumes it"
        )
    if inputs["model"] != card.digest:
        raise ValueError(
            f"--model {config.model.name} is not the model that --extend {run.uri} was made with; give that one, or "
            "leave --extend out to invert all images with this one"
        )
    if look_of(config.fidelity) != STORED and any("rotated" not in counts for counts in done.values()):
        raise ValueError(
            f"--extend {run.uri}: it is of a version that left EXIF rotations and transparency aside; leave --extend "
            "out to invert all images anew"
        )
    _check_timesteps(run, config, next(shard for shard, counts in sorted(done.items()) if counts["accepted"]))


def _check_timesteps(run: Store, config: RunConfig, shard: int) -> None:
    """Raise ValueError unless latents of every timestep that is asked for are stored."""
    there = [int(name[2:]) for name in run.column_names(latents_file(shard)) if name.startswith("z_")]
    if missing := [t for t in config.inversion.stored if t not in there]:
        raise ValueError(
            f"{config.inversion.flag_for(missing[0])} {missing[0]}: --extend {run.uri} stored no latents there (it has "
            f"t = {', '.join(map(str, there))}); choose of these, or leave --extend out to invert all images again"
        )
