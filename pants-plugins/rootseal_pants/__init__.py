"""Rootseal's adapter for Pants: wraps every process, and attests what `pants package` builds."""
