"""Every setting that decides a result, as frozen dataclasses; nothing here says where or how fast a run runs.

To add a setting, add its field, and the code that uses it. The field carries its flag, its help, which methods look at
it and whether a sweep may vary it (fields.py); command lines, refusals and the names of differences follow from that.
`late=True` keeps the fingerprints of runs that were made before the field was there.

docs/design.md has the authors' constants (Fidelity) and the reasons of our defaults (Decisions).
"""

from d3hr_ray.config.cao2 import CHOOSING, CaO2Config, Condition, Sampler, Selection
from d3hr_ray.config.data import DataConfig, Dtype, Format, ModelConfig
from d3hr_ray.config.fields import Flag, Setting, flag_of, setting, settings_of
from d3hr_ray.config.guide import GuideConfig
from d3hr_ray.config.method import (
    FITTING,
    OFFICIAL_BLOCK,
    OFFICIAL_SKEW_WEIGHT,
    PAPER_SKEW_WEIGHT,
    SEARCHING,
    InversionConfig,
    Posterior,
    Search,
    SearchConfig,
    Single,
    Solver,
    Spread,
    SynthesisConfig,
)
from d3hr_ray.config.plain import as_dict, differences, fingerprint, with_tuples
from d3hr_ray.config.refine import Family, RefineConfig, families_of
from d3hr_ray.config.run import (
    D3HR_QUIRKS,
    Fidelity,
    Method,
    Quirk,
    RunConfig,
    RunError,
    data_config,
    from_dict,
)

__all__ = [
    "CHOOSING",
    "D3HR_QUIRKS",
    "FITTING",
    "OFFICIAL_BLOCK",
    "OFFICIAL_SKEW_WEIGHT",
    "PAPER_SKEW_WEIGHT",
    "SEARCHING",
    "CaO2Config",
    "Condition",
    "DataConfig",
    "Dtype",
    "Family",
    "Fidelity",
    "Flag",
    "Format",
    "GuideConfig",
    "InversionConfig",
    "Method",
    "ModelConfig",
    "Posterior",
    "Quirk",
    "RefineConfig",
    "RunConfig",
    "RunError",
    "Sampler",
    "Search",
    "SearchConfig",
    "Selection",
    "Setting",
    "Single",
    "Solver",
    "Spread",
    "SynthesisConfig",
    "as_dict",
    "data_config",
    "differences",
    "families_of",
    "fingerprint",
    "flag_of",
    "from_dict",
    "setting",
    "settings_of",
    "with_tuples",
]
