"""Flows: invertible layers, their composition, dequantisation, and Flow++."""
