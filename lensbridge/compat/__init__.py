"""Interfaces of other libraries over lensbridge, so that code that was written for them runs."""

from lensbridge.compat.redirect import Redirection, install, uninstall

__all__ = ["Redirection", "install", "uninstall"]
