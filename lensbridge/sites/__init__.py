"""Where a point is in the native model, and how it is read and written.

Begin with `call.py` (one call of a module, as sites see it) and `site.py` (what a site is; inputs
and outputs of modules). `wiring/` makes the sites of one model from its parts. The kinds of sites:

- values that no module gives: `derived.py`, `heads.py`, and `kernel/` for the inside of attention;
- mixtures of experts: `experts.py`, with `routing.py` and `router.py`;
- values that the model has in another form: `turned.py` (positions first), `pair.py` (two streams),
  `sharded.py` (pieces on several ranks), `mapped.py`;
- sites on several modules or around another site: `composed.py`, `dropout.py`, `products.py`;
- any module's own input and output: `modules.py`, with `habits.py` and `leaves.py`;
- the values of a sparse autoencoder: `spliced.py`.
"""
