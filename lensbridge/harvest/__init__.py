"""Harvests: activations of a file of texts, written to safetensors shards that can be resumed.

from lensbridge.harvest import Harvest, harvest
harvest(model, "texts.txt", ["blocks.2.hook_resid_post"], "activations")
for shard in Harvest.open("activations"):
    train_on(shard["blocks.2.hook_resid_post"])  # [token, d_model]
"""

from lensbridge.harvest.harvesting import Options, harvest
from lensbridge.harvest.manifest import Manifest
from lensbridge.harvest.reading import Harvest

__all__ = ["Harvest", "Manifest", "Options", "harvest"]
