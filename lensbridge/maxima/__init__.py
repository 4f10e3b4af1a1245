"""Where a value of a model is largest in many texts: of a neuron, of a feature of an SAE.

Texts are run in batches, and what is kept does not grow with their number. `neuron_card` of
`lensbridge.analysis` and `feature_card` of `lensbridge.saes` are made of it.
"""
