"""Runs migrations on the connection that `database.migrate` hands over; there is no other way to run them."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transactional_ddl=True)
context.run_migrations()
