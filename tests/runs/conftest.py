"""A complete training run with two workers. All tests of this folder share it."""

from __future__ import annotations

import pytest

from tests.runs.submitted_job import SubmittedJob


@pytest.fixture(scope="session")
def submitted_job(tmp_path_factory: pytest.TempPathFactory) -> SubmittedJob:
    """The command of the rendered RayJob, submitted to a local Ray cluster. It has ended."""
    job = SubmittedJob(tmp_path_factory.mktemp("volume"))
    assert job.status == 0, job.output[-8000:]
    return job
