"""What checks every annotation while testing: beartype, for which a whole number is a number too (PEP 484)."""

from beartype import BeartypeConf, beartype

__all__ = ["check"]

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
