"""The packages and modules that docs/api/ has a page for."""

from typing import NamedTuple


class Package(NamedTuple):
    """A public package or module and where it is explained, as title and path from docs/."""

    module: str
    guides: tuple[tuple[str, str], ...]

    @property
    def page(self) -> str:
        """The name of its page."""
        return f"{self.module.removeprefix('lensbridge.')}.md"


_ARCHITECTURE = ("Add an architecture", "how-to/add-an-architecture.md")
_ATTRIBUTE = ("Attribute effects", "how-to/attribution-patching.md")
_INTERVENE = ("Intervene", "how-to/interventions.md")
_README = ("README", "../README.md")
_VOCABULARY = ("The vocabulary", "vocabulary.md")

PACKAGES = (
    Package("lensbridge", (_README,)),
    Package("lensbridge.hooks", (_README, ("Points", "points.md"))),
    Package("lensbridge.experiments", (("Experiments as data", "how-to/experiments.md"),)),
    Package("lensbridge.patching", (("Patch activations", "how-to/patching.md"),)),
    Package("lensbridge.causal", (_ATTRIBUTE,)),
    Package("lensbridge.gradients", (_INTERVENE, _ATTRIBUTE)),
    Package("lensbridge.interventions", (_INTERVENE,)),
    Package("lensbridge.generation", (_INTERVENE,)),
    Package("lensbridge.analysis", (("Analyse a model", "how-to/analyse.md"),)),
    Package("lensbridge.comparison", (("Compare with a fine-tune", "how-to/compare-models.md"),)),
    Package("lensbridge.evals", (("Analyse a model", "how-to/analyse.md"),)),
    Package("lensbridge.saes", (("Use sparse autoencoders", "how-to/saes.md"),)),
    Package("lensbridge.harvest", (("Cache a dataset", "how-to/cache-a-dataset.md"),)),
    Package(
        "lensbridge.engines",
        (
            ("Cache a dataset", "how-to/cache-a-dataset.md"),
            ("NDIF, through nnsight", "how-to/ndif.md"),
        ),
    ),
    Package("lensbridge.plans", (("Big models", "how-to/large-models.md"),)),
    Package("lensbridge.editing", (("Edit weights", "how-to/edit-weights.md"),)),
    Package("lensbridge.weights", (("Big models", "how-to/large-models.md"),)),
    Package("lensbridge.modules", (("Any module", "how-to/any-module.md"),)),
    Package("lensbridge.pipelines", (("Big models", "how-to/large-models.md"),)),
    Package("lensbridge.viz", (("Patch activations", "how-to/patching.md"),)),
    Package("lensbridge.serve", (("A page in the browser", "how-to/serve.md"),)),
    Package("lensbridge.remote", (("A model on another machine", "how-to/remote.md"),)),
    Package("lensbridge.errors", (_README,)),
    Package("lensbridge.spec", (_VOCABULARY, _ARCHITECTURE)),
    Package("lensbridge.hookspecs", (_ARCHITECTURE,)),
    Package("lensbridge.plugins", (_ARCHITECTURE,)),
    Package("lensbridge.derive", (_ARCHITECTURE,)),
    Package("lensbridge.testing", (_ARCHITECTURE,)),
    Package(
        "lensbridge.compat",
        (("Come from TransformerLens", "how-to/from-transformer-lens.md"),),
    ),
    Package(
        "lensbridge.compat.transformer_lens",
        (("Come from TransformerLens", "how-to/from-transformer-lens.md"),),
    ),
)

IN_BRIEF = ("lensbridge.compat.transformer_lens",)
"""Packages of which only names and first lines are shown."""

OWN_PAGES = {"LensModel": "model.md", "ActivationCache": "cache.md"}
"""Classes with a page to themselves."""
