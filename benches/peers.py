#!/usr/bin/env python3
"""Trilane beside other job systems, driven by a harness of such comparisons.

  make bench-peers PEERS=<folder of the harness> ARGS="trilane-postgres pg-boss ..."

The harness (its lib/harness.py states the contract) runs every system through the same three workloads on the same machine: a drain, single
submissions, latency. This program adds two entries to its list and calls it: Trilane on PostgreSQL with Redis, and on SQLite. Both are
durable: Redis holds hints, so its own durability adds nothing. TRILANE_BENCH names the built program of benches/main.rs.
"""
import os, socket, sys

PEERS = os.path.abspath(os.environ["PEERS"])
sys.path.insert(0, os.path.join(PEERS, "lib"))
import harness  # noqa: E402

BENCH = os.environ.pop("TRILANE_BENCH")  # no setting of the program
WORKERS = [dict(name=f"{count} workers", procs=1, args=[], env={"TRILANE_WORKERS": str(count)}) for count in (4, 16)]
ENTRY = dict(dir=".", version=lambda: "0.1.0", client=[BENCH, "peer"], worker=[BENCH, "replica", "gated"], variants=WORKERS,
             remaining=lambda store: store.total - int(store.sql("select coalesce(sum(Completed), 0) from JobStats")))
NOTES = "over HTTP (POST /enqueue), 4 connections for the bulk load; keeps finished jobs"


class PostgresAndRedis(harness.Pg):
    def start(self):
        super().start()
        self.redis = harness.Redis(durable=False)
        self.redis.start()
        self.server_pids = self.server_pids + self.redis.server_pids
        self.env = {**self.env, "REDIS_URL": self.redis.env["PEERS_REDIS"], "DB_CONNECTION":
                    f"Driver={{PostgreSQL Unicode}};Server={harness.PGHOST};Port={harness.PGPORT};Database={self.db};UID={harness.PGUSER};"}

    def fresh(self):
        super().fresh()
        self.redis.fresh()

    def stop(self):
        self.redis.stop()
        super().stop()


class Sqlite(harness.Sqlite):
    def start(self):
        super().start()
        self.env = {"DB_CONNECTION": f"Driver={{SQLite3}};Database={self.path};"}


def make_store(kind, peer, theirs=harness.make_store):
    if not peer.startswith("trilane"):
        return theirs(kind, peer)
    return PostgresAndRedis(peer.replace("-", "_")) if kind == "postgres" else Sqlite(durable=True)


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % listener.getsockname()[1]


harness.make_store = make_store
harness.PEERS["trilane-postgres"] = dict(ENTRY, kind="postgres", configs=[{"store": "postgres"}], notes="Redis for its lanes; " + NOTES)
harness.PEERS["trilane-sqlite"] = dict(ENTRY, kind="sqlite", configs=[{"store": "sqlite-full"}], notes=NOTES)
os.environ.update(TRILANE_HTTP_ADDR=free_address(), TRILANE_LOG="warn")
harness.main()
