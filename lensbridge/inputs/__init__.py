"""From prompts to arguments of the native forward."""
