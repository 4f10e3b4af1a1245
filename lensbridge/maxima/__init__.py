"""The texts in which a value of a model is largest: of a neuron, or of a feature of an SAE.

Texts are run in batches, and what is kept does not grow with their number. `neuron_card` of
`lensbridge.analysis` and `feature_card` of `lensbridge.saes` are made of it.
"""
