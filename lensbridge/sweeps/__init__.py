"""Run many edited copies of one input, fast, and measure each."""
