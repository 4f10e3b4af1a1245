"""Names of activations: the table of points, spellings, and what one model has of them."""
