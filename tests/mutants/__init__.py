"""Deliberate bugs, and the script that sees whether the suite catches them."""
