"""Experiments: each module defines `get_config()`. `families` has the protocols that several of them share."""
