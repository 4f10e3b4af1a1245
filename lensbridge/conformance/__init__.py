"""Checks by behaviour that a model is what its description says.

`kit.conformance` takes a model, or builds tiny ones of a description (`building`, `tiny`, `sizes`).
Each becomes a `Subject`: a model with a lens, an input, and the passes that checks share. `checks`
is the table of all checks; each is a function in the module of what it is about (`norms`, `mlp`,
`residual`...). Their results are the rows of a `Report`.
"""
