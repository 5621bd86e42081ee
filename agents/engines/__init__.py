"""Thin adapters from agents' protocols to models; heavy imports happen in setup()."""
