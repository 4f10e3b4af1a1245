"""Names of activations: the table of points, their spellings, and the points of one model."""
