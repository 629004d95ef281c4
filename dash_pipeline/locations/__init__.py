"""Code locations: a module each, loaded by a server of its own, so that one that breaks leaves the others working."""
