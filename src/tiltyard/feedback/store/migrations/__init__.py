"""Alembic migrations of the feedback store; `database.migrate` runs them."""
