"""A virtual network for virtual machines, containers and labs, as a program of its own."""

__version__ = "0.1.0"
