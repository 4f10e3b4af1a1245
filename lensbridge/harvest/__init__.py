"""Harvests: activations of a dataset, written to safetensors shards that can be resumed.

spec = Harvest(model="gpt2", data="texts.txt", points=["resid_post"], layers=[6])
spec.run("activations")
acts = Activations("activations")
acts["resid_post", 6][:64]  # [token, d_model]
"""

from lensbridge.harvest.activations import Activations
from lensbridge.harvest.harvesting import Harvest
from lensbridge.harvest.pairs import sweep_dataset
from lensbridge.harvest.plan import Plan
from lensbridge.harvest.reductions import Features, Last, Mean, Norm, Projection, Reduction, TopK
from lensbridge.harvest.report import Report
from lensbridge.harvest.spec import Keep, Rows
from lensbridge.harvest.tops import Top, Tops

__all__ = [
    "Activations",
    "Features",
    "Harvest",
    "Keep",
    "Last",
    "Mean",
    "Norm",
    "Plan",
    "Projection",
    "Reduction",
    "Report",
    "Rows",
    "Top",
    "TopK",
    "Tops",
    "sweep_dataset",
]
