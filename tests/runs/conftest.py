"""A training run with two workers that nothing disturbs, once for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.runs.submitted_job import SubmittedJob


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SubmittedJob:
    """The rendered RayJob's command, submitted to a cluster."""
    job = SubmittedJob(tmp_path_factory.mktemp("volume"))
    assert job.status == 0, job.said[-8000:]
    return job
