"""Ports with one mistake each, made by hand from one-sentence descriptions; see README.md beside this file."""
