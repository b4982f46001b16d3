"""Back ends: `[kind NAME]` of a lab is carried by the module `kind` of this package."""
