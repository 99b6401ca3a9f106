"""What drivers of Python send, against the endpoint: psycopg 3, asyncpg, SQLAlchemy, pg8000. Argument: its address."""

import asyncio
import sys
from urllib.parse import urlsplit

import asyncpg
import pg8000.native
import psycopg
import sqlalchemy

URL = sys.argv[1]
EXPECTED = [int(key) for key in sys.argv[2].split(",")]
QUERY = [0.3, 0.1, 0.7, 0.5]
TEXT = "[0.3,0.1,0.7,0.5]"
NEAREST = "SELECT id, section, embedding FROM docs ORDER BY embedding <-> {} LIMIT 5"


def same(what, found, expected=EXPECTED):
    assert list(found) == list(expected), f"{what}: {found}, not {expected}"
    print("ok", what)


def psycopg_3():
    with psycopg.connect(URL) as connection:
        rows = connection.execute(NEAREST.format("%s"), [TEXT]).fetchall()
        same("psycopg: text", [row[0] for row in rows])
        assert all(isinstance(row[2], list) and len(row[2]) == 4 for row in rows), rows
        for _ in range(8):  # From the sixth on it is prepared.
            rows = connection.execute(NEAREST.format("%s::real[]"), [QUERY]).fetchall()
        same("psycopg: prepared, list", [row[0] for row in rows])
        with connection.cursor(binary=True) as cursor:
            cursor.execute("SELECT id, views FROM docs WHERE id = ANY(%b) ORDER BY id", [[9, 3, 5]])
            same("psycopg: binary, = ANY", [row[0] for row in cursor.fetchall()], [3, 5, 9])
        with connection.cursor(name="of the server") as cursor:
            cursor.execute(NEAREST.format("%s"), [TEXT])
            same("psycopg: server-side cursor", [row[0] for row in cursor.fetchmany(3)], EXPECTED[:3])
    with psycopg.connect(URL, autocommit=True) as connection:
        with connection.pipeline():
            cursors = [connection.execute("SELECT id FROM docs WHERE id = %s", [key]) for key in (1, 2, 3)]
        same("psycopg: pipeline", [cursor.fetchone()[0] for cursor in cursors], [1, 2, 3])
        lsn = connection.execute("SELECT applied_lsn FROM status WHERE applied_lsn > '0/1' AND applied_lsn < 'FFFFFFF/0'")
        assert "/" in lsn.fetchone()[0] and lsn.description[0].type_code == 3220, lsn.description
        print("ok psycopg: pg_lsn")
        try:
            connection.execute("SELECT id FROM docs d JOIN docs e USING (id)")
            raise SystemExit("a join was taken")
        except psycopg.errors.FeatureNotSupported as error:
            assert error.diag.message_hint, error
            print("ok psycopg: an error with its hint")


async def async_pg():
    connection = await asyncpg.connect(URL)
    rows = await connection.fetch(NEAREST.format("$1"), TEXT)
    same("asyncpg: text", [row["id"] for row in rows])
    assert all(len(row["embedding"]) == 4 for row in rows), rows
    statement = await connection.prepare(NEAREST.format("$1::real[]"))
    for _ in range(3):
        rows = await statement.fetch(QUERY)
    same("asyncpg: prepared, binary real[]", [row["id"] for row in rows])
    rows = await connection.fetch("SELECT id FROM docs WHERE id = ANY($1) AND section = ANY($2) ORDER BY id", [6, 1, 11], ["s1"])
    same("asyncpg: = ANY", [row["id"] for row in rows], [1, 6, 11])
    rows = await connection.fetch("SELECT key FROM search WHERE collection = $1 AND query = $2 AND k = $3", "docs", QUERY, 5)
    same("asyncpg: search", [int(row["key"]) for row in rows])
    async with connection.transaction(isolation="repeatable_read"):
        found = []
        async for row in connection.cursor(NEAREST.format("$1"), TEXT, prefetch=2):
            found.append(row["id"])
        same("asyncpg: cursor", found)
    await connection.close()
    async with asyncpg.create_pool(URL, min_size=2, max_size=4) as pool:
        found = await asyncio.gather(*(pool.fetchval("SELECT id FROM docs WHERE id = $1", key) for key in range(1, 9)))
        same("asyncpg: pool", found, range(1, 9))


def sql_alchemy():
    for driver in ("psycopg", "asyncpg", "pg8000"):
        url = URL.replace("postgresql://", f"postgresql+{driver}://")
        if driver == "asyncpg":
            asyncio.run(sql_alchemy_async(url))
            continue
        engine = sqlalchemy.create_engine(url, pool_pre_ping=True)
        with engine.connect() as connection:
            rows = connection.execute(sqlalchemy.text(NEAREST.format(":query")), {"query": TEXT}).all()
            same(f"SQLAlchemy with {driver}", [row[0] for row in rows])
        names = sqlalchemy.inspect(engine).get_table_names(schema="collections")
        assert "docs" in names, names
        engine.dispose()


async def sql_alchemy_async(url):
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url)
    async with engine.connect() as connection:
        rows = (await connection.execute(sqlalchemy.text(NEAREST.format(":query")), {"query": TEXT})).all()
        same("SQLAlchemy with asyncpg", [row[0] for row in rows])
    await engine.dispose()


def pg_8000():
    url = urlsplit(URL)
    connection = pg8000.native.Connection(
        url.username, password=url.password, host=url.hostname, port=url.port, database=url.path.lstrip("/"))
    rows = connection.run(NEAREST.format(":query"), query=TEXT)
    same("pg8000", [row[0] for row in rows])
    connection.close()


psycopg_3()
asyncio.run(async_pg())
sql_alchemy()
pg_8000()
