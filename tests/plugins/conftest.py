"""The packages here are installed by test_plugins.py; pytest must not import them from source."""

collect_ignore_glob = ["lensbridge-*"]
