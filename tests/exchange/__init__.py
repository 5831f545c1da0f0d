"""Judgements in the forms of other tools."""
