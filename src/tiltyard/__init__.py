"""Tiltyard: align language models with what people prefer."""
