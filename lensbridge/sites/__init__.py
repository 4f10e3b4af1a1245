"""Where a point is in the native model, and how it is read and written."""
