"""Hepalign over HTTP: a Ray Serve application for hospital sites."""
