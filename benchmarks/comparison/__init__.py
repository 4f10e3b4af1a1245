"""lensbridge beside the field's other tools; every statement is the outcome of code that ran.

`python -m benchmarks.comparison` runs it all and writes docs/comparison.md.
"""
