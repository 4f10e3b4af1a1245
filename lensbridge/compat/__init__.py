"""Interfaces of other libraries over lensbridge, so that code that was written for them runs."""
