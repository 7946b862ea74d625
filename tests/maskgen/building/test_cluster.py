"""Clusters of dask: without workers, with a single one, and losing the last one."""

import os
import time

import joblib
import pytest

from hapicl.common.errors import UserError
from hapicl.maskgen.building import pool

distributed = pytest.importorskip("distributed", reason="pip install 'hapicl[dask]'")


@pytest.fixture
def cluster():
    """Start a scheduler with so many workers of one thread."""
    started = []

    def start(workers):
        started.append(
            distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        )
        return started[-1].scheduler_address

    yield start
    for each in started:
        each.close()


def test_a_scheduler_without_workers_ended_in_60_lines(cluster, monkeypatch):
    monkeypatch.setattr(pool, "FIRST_WORKER_SECONDS", 1.0)
    address = cluster(0)
    with (
        pytest.raises(UserError, match=rf"^no workers at {address}; start `dask worker {address}`$"),
        pool._cluster("dask", 1, address),
    ):
        pytest.fail("it has begun")


def test_a_single_thread_made_the_work_run_in_the_client(cluster):
    with pool._cluster("dask", 1, cluster(1)):
        found = joblib.Parallel(n_jobs=-1, batch_size=1)(joblib.delayed(os.getpid)() for _ in range(3))
    assert os.getpid() not in found
    assert len(set(found)) == 1


def test_the_loss_of_all_workers_was_silent(monkeypatch, caplog):
    class Client:
        def __init__(self):
            self.workers = {"tcp://w": 1}

        def ncores(self):
            return self.workers

    monkeypatch.setattr(pool, "WATCH_SECONDS", 0.01)
    client = Client()
    with pool._watched(client, "tcp://s:8786"):
        for workers in ({}, {"tcp://w": 1}):
            time.sleep(0.2)
            client.workers = workers
        time.sleep(0.2)
    assert [record.getMessage() for record in caplog.records] == [
        "no worker is left at tcp://s:8786: waiting for one (`dask worker tcp://s:8786`); Ctrl-C keeps "
        "what is done",
        "a worker has come to tcp://s:8786: going on",
    ]
