"""What a migration may do while the release before it still works on the same database: expand, then contract."""

import io
from types import ModuleType
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations, ops
from sqlalchemy import String

# Taken away on purpose, by migration: `table` or `table.column` that no release reads or writes any more which may run
# beside the one that takes it away. The release before must already do without it.
CONTRACTED: dict[str, set[str]] = {}


def operations(migration: ModuleType) -> list[Any]:
    """What a migration does, in order; it comes to nothing but text."""
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": io.StringIO()}
    )
    done = []
    with Operations.context(context) as proxied:
        invoke = proxied.invoke

        def recorded(operation: Any) -> Any:
            done.append(operation)
            # Rows are not written as text.
            return None if isinstance(operation, ops.BulkInsertOp) else invoke(operation)

        proxied.invoke = recorded  # type: ignore[method-assign]
        migration.upgrade()
    return done


def breaches(done: list[Any], contracted: set[str] | None = None) -> list[str]:
    """What of it the release before would not survive, each in a sentence."""
    allowed = contracted or set()
    own = {operation.table_name for operation in done if isinstance(operation, ops.CreateTableOp)}
    found = []
    for operation in done:
        table = getattr(operation, "table_name", None)
        if table in own:
            continue
        match operation:
            case ops.DropTableOp():
                if table not in allowed:
                    found.append(f"drops the table {table}")
            case ops.RenameTableOp():
                found.append(f"renames the table {table}")
            case ops.DropColumnOp():
                if f"{table}.{operation.column_name}" not in allowed:
                    found.append(f"drops {table}.{operation.column_name}")
            case ops.AddColumnOp():
                column = operation.column
                if not column.nullable and column.server_default is None:
                    found.append(f"adds {table}.{column.name}, which may not be null, without a server default")
                if column.unique or column.foreign_keys:
                    found.append(f"adds {table}.{column.name} with a rule that the release before does not know")
            case ops.AlterColumnOp():
                found += _altered(operation, table)
            case ops.CreateIndexOp():
                if operation.unique:
                    found.append(f"makes the unique index {operation.index_name} on {table}")
            case ops.AddConstraintOp():
                found.append(f"adds a {operation.constraint_type} to {table}")
            case ops.ExecuteSQLOp():
                found.append("does SQL of its own, of which nobody can tell: use an operation, or data alone")
            case ops.CreateTableOp() | ops.BulkInsertOp() | ops.DropIndexOp() | ops.DropConstraintOp():
                pass
            case _:
                found.append(f"does {type(operation).__name__}, of which these rules say nothing")
    return found


def _altered(operation: ops.AlterColumnOp, table: str | None) -> list[str]:
    column = f"{table}.{operation.column_name}"
    found = []
    if operation.modify_name is not None:
        found.append(f"renames {column}")
    if operation.modify_nullable is False:
        found.append(f"makes {column} one that may not be null")
    if operation.modify_type is not None and not _wider(operation.existing_type, operation.modify_type):
        found.append(f"changes the type of {column}")
    if operation.modify_server_default is None:
        found.append(f"takes away the default of {column}")
    return found


def _wider(before: Any, after: Any) -> bool:
    """Whether what the release before writes and reads still fits."""
    if not (isinstance(before, String) and isinstance(after, String)) or before.length is None:
        return False
    return after.length is None or after.length >= before.length
