"""A real PostgreSQL on this machine, and a stage whose store is in it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ports import reserved_port
from stage import Stage

DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
"""Where Debian's package keeps the programs that are in no PATH."""


def program(name: str) -> str | None:
    """The path of one of PostgreSQL's programs; None where it is not installed."""
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, DEBIAN)]))


class Postgres:
    """A cluster of its own on 127.0.0.1, gone after use."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.reserved = reserved_port()
        self.port: int = self.reserved.getsockname()[1]
        # PostgreSQL refuses to run as root.
        self.user: int | None = None
        if os.getuid() == 0:
            self.user = pwd.getpwnam("postgres").pw_uid
            os.chown(self.folder, self.user, -1)
        self.run("initdb", "--pgdata", f"{self.folder}/data", "--username", "mlflow", "--no-sync")
        self.start()
        self.ask("CREATE DATABASE mlflow")

    def run(self, name: str, *arguments: str) -> None:
        path = program(name)
        assert path is not None
        subprocess.run(
            [path, *arguments],
            user=self.user,
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        log = f"{self.folder}/log"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """As when its machine fails: no connection is ended in order."""
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", "immediate", "stop")

    def close(self) -> None:
        self.stop()
        self.reserved.close()
        shutil.rmtree(self.folder)

    def address(self, database: str = "mlflow") -> str:
        return f"postgresql://mlflow@127.0.0.1:{self.port}/{database}"

    def ask(
        self, statement: str, database: str = "postgres", values: Sequence[object] | None = None
    ) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.address(database), autocommit=True) as connection:
            answer = connection.execute(statement.encode(), values)
            return answer.fetchall() if answer.description else []


class PostgresStage(Stage):
    """A stage whose store is a database of PostgreSQL's."""

    def __init__(self, folder: Path) -> None:
        self.postgres = Postgres()
        super().__init__(folder)
        self.environment["MLFLOW_TRACKING_URI"] = self.postgres.address()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.postgres.close()

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        statement = statement.replace("%", "%%").replace("?", "%s")
        return self.postgres.ask(statement, "mlflow", values)

    def save(self, name: str) -> None:
        super().save(name)
        self.postgres.ask(f'CREATE DATABASE "{name}" TEMPLATE mlflow')

    def restore(self, name: str) -> None:
        super().restore(name)
        self.postgres.ask("DROP DATABASE mlflow WITH (FORCE)")
        self.postgres.ask(f'CREATE DATABASE mlflow TEMPLATE "{name}"')
