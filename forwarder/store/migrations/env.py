"""Alembic's entry: runs the revisions on the connection, and in the transaction, that ``upgrade`` opened."""

from alembic import context

from forwarder.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the transaction is the caller's
)
context.run_migrations()
