"""Run by alembic: migrates over the connection that it is handed."""

from alembic import context

from api.store.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    # SQLite changes columns only by making the table again.
    render_as_batch=connection is not None and connection.dialect.name == "sqlite",
    # The caller has begun the transaction, and commits it.
    transactional_ddl=False,
)
context.run_migrations()
