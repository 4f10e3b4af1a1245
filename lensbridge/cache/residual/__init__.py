"""The residual stream taken apart: what is added to it, what it goes through, who wrote a logit."""
