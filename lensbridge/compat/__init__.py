"""Other libraries' interfaces over lensbridge, so that what was written for them runs."""
