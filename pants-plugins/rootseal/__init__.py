"""Rootseal: per-action capture and one signed Merkle attestation for monorepo builds."""

__version__ = "0.1.0"
