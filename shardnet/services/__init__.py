"""Kinds of section that answer requests: [dns NAME] is dns.py. A service of a user-mode network is one of them too."""
