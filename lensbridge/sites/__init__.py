"""Where a point lives in the native model, and how it is read and written."""
