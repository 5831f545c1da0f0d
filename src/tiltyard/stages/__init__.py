"""The kinds of stages a recipe may name. `base.load_all()` imports the modules that register them."""
