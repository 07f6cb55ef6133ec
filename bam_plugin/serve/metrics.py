"""Counts and times of a server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from bam_plugin.serve.jobs import Job, JobBoard


class Metrics:
    """What /metrics shows, in a registry of its own: several applications may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Counter("bam_jobs", "Jobs that ended, by state.", ["state"], registry=self.registry)
        self.pixels = Counter("bam_input_pixels", "Pixels of pictures that were enlarged.", registry=self.registry)
        self.seconds = Histogram("bam_job_seconds", "Time of jobs that are done.", registry=self.registry)
        self.waiting = Gauge("bam_jobs_waiting", "Jobs that wait for their turn.", registry=self.registry)

    def note(self, job: Job) -> None:
        """Count a job that ended."""
        self.jobs.labels(job.state).inc()
        if job.state == "done":
            self.pixels.inc(job.pixels)
            self.seconds.observe(job.seconds or 0.0)

    def text(self, board: JobBoard) -> str:
        """All of it in Prometheus' own format."""
        self.waiting.set(board.waiting)
        return generate_latest(self.registry).decode()
