"""A plugin whose import fails, as one does that was written for another version of something."""

raise RuntimeError("this plugin was left behind by an update")
