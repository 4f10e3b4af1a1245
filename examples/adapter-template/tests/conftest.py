"""The conformance kit on the architectures of this package: one test for each check and variant."""

import transformers
from lensbridge_tinystack.adapter import ARCHITECTURES
from lensbridge_tinystack.model import TinystackForCausalLM

pytest_plugins = ["lensbridge.testing.plugin"]
LENSBRIDGE_ARCHITECTURES = ARCHITECTURES

# The kit builds tiny models of classes that it finds in transformers. The model of this package is
# not in transformers, so it is added here. If yours is there, leave this line out.
transformers.TinystackForCausalLM = TinystackForCausalLM
