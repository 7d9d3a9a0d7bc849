"""Jobs as a control plane has them that has run for a while: most are over, some are active."""

from typing import Any

import asyncpg

from api.store.database import Database
from api.tokens import Tokens
from benchmarks.load.world import World
from worker.contract.check import parse_spec

SPEC = {
    "stage": {"type": "sft", "model": "models/base", "data": "files/file-aaaaaaaaaaaa", "steps": 1000},
    "metadata": {"team": "team-1", "run": "run-1"},
    "limits": {"wall_clock": "24h"},
}

# Newest first: the active ones are the newest. One in ten belongs to another project.
_JOBS = """
INSERT INTO jobs (id, project_id, name, stage, spec, spec_sha256, inputs, metadata, priority, needs, created_at,
    desired, retry_requested, generation, waiting, phase, phase_since, message, attempt, fruitless, worker_errors,
    ran_for, started_at, finished_at, progress, event_count)
SELECT 'job-' || lpad(n::text, 12, '0'), CASE WHEN n % 10 = 9 AND n > $3 THEN 'other' ELSE 'default' END,
    'dolly-' || n % 1000,
    CASE WHEN n % 10000 = 77 THEN 'distill' ELSE 'sft' END, $2::jsonb, repeat('0', 64), '{}',
    jsonb_build_object('team', 'team-' || n % 10, 'run', 'run-' || n)
        || CASE WHEN n % 10000 = 7 THEN '{"rare": "yes"}'::jsonb ELSE '{}' END,
    0, '[]', now() - n * interval '30 seconds', 'run', false, 1, false,
    CASE WHEN n <= $3 THEN 'starting' WHEN n % 500 = 1 THEN 'paused' WHEN n % 20 = 2 THEN 'failed'
        WHEN n % 33 = 3 THEN 'cancelled' ELSE 'succeeded' END,
    now() - n * interval '29 seconds', '', 1, 0, 0, 0, now() - n * interval '29 seconds',
    CASE WHEN n <= $3 THEN NULL ELSE now() - n * interval '20 seconds' END,
    '{"step": 0, "steps": 1000, "tokens": 0, "mark": 0, "tokens_per_second": null}', 1
FROM generate_series(1, $1::int) n
"""
_ATTEMPTS = """
INSERT INTO attempts (job_id, number, object_name, created_at, message, cleaned, confirmed_dead, last_seq, mark)
SELECT id, 1, id || '-a1', created_at, '', phase <> 'starting', false, 0, 0 FROM jobs
"""
_EVENTS = """
INSERT INTO events (job_id, number, at, type, level, source, message)
SELECT id, 1, created_at, 'Created', 'info', 'api', 'sft job ' || name FROM jobs
"""


async def fill(world: World, jobs: int, active: int) -> list[tuple[str, str]]:
    """Makes `jobs` jobs, and gives the `active` ones of them, each with its attempt's token."""
    document = parse_spec(SPEC).model_dump_json()
    connection: Any = await asyncpg.connect(world.dsn)
    await connection.execute("INSERT INTO projects (id, name, created_at) VALUES ('other', 'other', now())")
    await connection.execute(_JOBS, jobs, document, active, timeout=600)
    await connection.execute(_ATTEMPTS, timeout=600)
    await connection.execute(_EVENTS, timeout=600)
    # What autovacuum does within a minute.
    await connection.execute("VACUUM ANALYZE", timeout=600)
    names = [row["id"] for row in await connection.fetch("SELECT id FROM jobs WHERE phase = 'starting' ORDER BY id")]
    await connection.close()
    return await tokens(world, names)


async def tokens(world: World, names: list[str]) -> list[tuple[str, str]]:
    """Each job with the token of its first attempt."""
    database = Database(world.database_url)
    issuing = Tokens(database)
    issued = [(job, await issuing.issue(job, 1)) for job in names]
    await database.dispose()
    return issued


async def asked(world: World, query: str, *values: object) -> Any:
    """One value of the database."""
    connection: Any = await asyncpg.connect(world.dsn)
    try:
        return await connection.fetchval(query, *values, timeout=600)
    finally:
        await connection.close()


async def do(world: World, statement: str) -> None:
    """What an operator would write."""
    connection: Any = await asyncpg.connect(world.dsn)
    await connection.execute(statement, timeout=600)
    await connection.close()
