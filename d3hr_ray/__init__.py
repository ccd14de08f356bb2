"""Diffusion-based dataset distillation (D3HR, CaO2): a Ray-distributed engine, and its method as a library.

    import d3hr_ray as d3

Names are imported when they are first used: the jobs and their workers import this package, and torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d3hr_ray.config import RunError
    from d3hr_ray.library.gaussian import Gaussian, fit_gaussian, match_moments, matching_loss, random_search
    from d3hr_ray.library.images import ImageSet, load_set
    from d3hr_ray.library.model import Model, load_model
    from d3hr_ray.library.students import train_student
    from d3hr_ray.models.autoencoder import to_images, to_pixels

__version__ = "0.1.0"

__all__ = [
    "Gaussian",
    "ImageSet",
    "Model",
    "RunError",
    "fit_gaussian",
    "load_model",
    "load_set",
    "match_moments",
    "matching_loss",
    "random_search",
    "to_images",
    "to_pixels",
    "train_student",
]

_HOMES = {
    "config": ("RunError",),
    "library.gaussian": ("Gaussian", "fit_gaussian", "match_moments", "matching_loss", "random_search"),
    "library.images": ("ImageSet", "load_set"),
    "library.model": ("Model", "load_model"),
    "library.students": ("train_student",),
    "models.autoencoder": ("to_images", "to_pixels"),
}

if not TYPE_CHECKING:  # type checkers read the imports above, and so know a misspelt name

    def __getattr__(name: str) -> Any:
        """Import a name of `__all__` (PEP 562), once."""
        for home, names in _HOMES.items():
            if name in names:
                globals()[name] = value = getattr(import_module(f"{__name__}.{home}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        """What is there, imported or not."""
        return sorted({*globals(), *__all__})
