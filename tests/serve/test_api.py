"""The API of a real server: right answers, named problems, limits, and no way to the machine's files."""

from __future__ import annotations

import concurrent.futures
import io
import json
import socket
import time
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from helpers.data_images import picture
from PIL import Image

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from helpers.servers import RunningServer, running  # noqa: E402

from bam_plugin.serve.settings import ServeError, ServeSettings  # noqa: E402
from bam_plugin.serve.uploads import plain_name  # noqa: E402
from bam_plugin.upscale import Upscaler  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(max_waiting=300, max_pixels=4_000_000, max_body_bytes=2 << 20) as started:
        yield started


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def rgb(seed: int, height: int = 24, width: int = 20) -> np.ndarray:
    return np.ascontiguousarray(picture(seed, height, width))


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def problem(response) -> tuple[int, str]:
    facts = response.json()
    assert set(facts) == {"error", "message"}
    assert "/tmp" not in facts["message"] and "bam_serve" not in facts["message"]
    return response.status_code, facts["error"]


def test_raw_body_and_form_give_what_the_upscaler_gives(server) -> None:
    small = rgb(1)
    expected = Upscaler("bsrn_light", threads=1).upscale(small)
    raw = httpx.post(f"{server.address}/v1/upscale", content=png(small))
    form = httpx.post(f"{server.address}/v1/upscale", files={"file": ("holiday.png", png(small), "image/png")})
    for response in (raw, form):
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "image/png"
        np.testing.assert_array_equal(pixels_of(response.content), expected)
    assert "holiday_large.png" in form.headers["content-disposition"]
    wait_until(lambda: not server.board.jobs)  # a result that was fetched is not kept


def test_options_choose_scale_format_and_quality(server) -> None:
    query = {"scale": 2, "format": "jpg", "quality": 60}
    response = httpx.post(f"{server.address}/v1/upscale", params=query, content=png(rgb(2)))
    with Image.open(io.BytesIO(response.content)) as image:
        assert (image.format, image.size) == ("JPEG", (40, 48))
    assert "resized to 2 times" in response.headers["x-notes"]


def test_models_health_metrics_and_schema(server) -> None:
    models = httpx.get(f"{server.address}/v1/models").json()
    assert {"model": "bsrn_light", "scale": 4, "default": True}.items() <= next(
        each for each in models if each["default"]
    ).items()
    assert httpx.get(f"{server.address}/healthz").json()["status"] == "ok"
    httpx.post(f"{server.address}/v1/upscale", content=png(rgb(3)))
    assert 'bam_jobs_total{state="done"}' in httpx.get(f"{server.address}/metrics").text
    assert "/v1/upscale" in httpx.get(f"{server.address}/v1/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("query", "body", "expected"),
    [
        ({}, b"", (400, "UploadError")),
        ({}, b"no picture at all", (415, "UnknownPictureError")),
        ({}, bytes(3 << 20), (413, "UploadError")),
        ({"model": "../../../etc/passwd"}, png(rgb(1)), (404, "UnknownModelError")),
        ({"model": "/etc/passwd"}, png(rgb(1)), (404, "UnknownModelError")),
        ({}, png(np.zeros((2100, 2100), np.uint8)), (413, "PictureTooLargeError")),
        ({"scale": 16}, png(np.zeros((1900, 1900), np.uint8)), (413, "UploadError")),
    ],
)
def test_what_cannot_be_served_is_said_by_name(server, query, body, expected) -> None:
    assert problem(httpx.post(f"{server.address}/v1/upscale", params=query, content=body)) == expected
    assert not server.board.jobs
    assert not [folder for folder in server.board._root.iterdir() if any(folder.iterdir())]


def test_a_damaged_picture_names_the_picture_and_no_folder(server) -> None:
    content = png(rgb(4, 64, 64))
    response = httpx.post(f"{server.address}/v1/upscale", files={"file": ("cut.png", content[: len(content) // 2])})
    assert problem(response)[0] == 400
    assert "cut.png" in response.json()["message"]


def test_chunks_beyond_the_limit_and_slow_bodies_are_cut_off(server) -> None:
    response = httpx.post(f"{server.address}/v1/upscale", content=(bytes(1 << 20) for _ in range(5)))
    assert problem(response) == (413, "UploadError")
    with running(body_seconds=0.3) as impatient:
        host, port = impatient.address.removeprefix("http://").split(":")
        client = socket.create_connection((host, int(port)))
        client.sendall(b"POST /v1/upscale HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nslow")
        client.settimeout(10)
        assert b" 408 " in client.recv(4096).split(b"\r\n")[0]
        client.close()


def test_a_job_is_watched_fetched_archived_and_forgotten(server) -> None:
    created = httpx.post(f"{server.address}/v1/jobs", files={"file": ("a/b\\lake.png", png(rgb(5, 90, 90)))})
    assert created.status_code == 202
    job = created.json()
    assert job["name"] == "lake.png"
    with httpx.stream("GET", f"{server.address}/v1/jobs/{job['id']}/events") as events:
        seen = [json.loads(line.removeprefix("data: ")) for line in events.iter_lines() if line]
    assert seen[-1]["state"] == "done" and (seen[-1]["width"], seen[-1]["height"]) == (360, 360)
    assert [each["progress"] for each in seen] == sorted(each["progress"] for each in seen)
    result = httpx.get(f"{server.address}/v1/jobs/{job['id']}/result")
    np.testing.assert_array_equal(pixels_of(result.content), Upscaler("bsrn_light").upscale(rgb(5, 90, 90)))
    twin = httpx.post(f"{server.address}/v1/jobs", files={"file": ("lake.png", png(rgb(6)))}).json()
    wait_until(lambda: httpx.get(f"{server.address}/v1/jobs/{twin['id']}").json()["state"] == "done")
    archive = httpx.get(f"{server.address}/v1/archive", params={"job": [job["id"], twin["id"]]})
    with zipfile.ZipFile(io.BytesIO(archive.content)) as files:
        assert files.namelist() == ["lake_large.png", "lake_large_2.png"]
        assert files.read("lake_large.png") == result.content
    for each in (job, twin):
        assert httpx.delete(f"{server.address}/v1/jobs/{each['id']}").status_code == 204
        assert problem(httpx.get(f"{server.address}/v1/jobs/{each['id']}"))[0] == 404
    assert not server.board.jobs


def test_a_running_job_can_be_cancelled_and_a_full_queue_answers_429() -> None:
    large = png(rgb(7, 1400, 1400))
    with running(max_waiting=1) as server:
        first = httpx.post(f"{server.address}/v1/jobs", content=large).json()
        wait_until(lambda: httpx.get(f"{server.address}/v1/jobs/{first['id']}").json()["state"] == "running")
        second = httpx.post(f"{server.address}/v1/jobs", content=large)
        assert second.status_code == 202
        assert problem(httpx.get(f"{server.address}/v1/jobs/{first['id']}/result"))[0] == 409
        refused = httpx.post(f"{server.address}/v1/upscale", content=large)
        assert problem(refused) == (429, "QueueFullError")
        assert int(refused.headers["retry-after"]) > 0
        jobs = list(server.board.jobs.values())
        for job in jobs:
            assert httpx.delete(f"{server.address}/v1/jobs/{job.id}").status_code == 204
        wait_until(lambda: all(job.ended.is_set() for job in jobs))
        assert {job.state for job in jobs} == {"cancelled"}
        assert not [job for job in jobs if job.folder.exists()]


def test_a_client_that_goes_away_stops_its_work() -> None:
    body = png(rgb(8, 1400, 1400))
    with running() as server:
        host, port = server.address.removeprefix("http://").split(":")
        head = f"POST /v1/upscale HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head.encode() + body)
            wait_until(lambda: [job.state for job in server.board.jobs.values()] == ["running"])
            (job,) = server.board.jobs.values()
        wait_until(job.ended.is_set)
        assert job.state == "cancelled" and job.progress < 1


def test_a_job_whose_time_is_up_is_stopped() -> None:
    with running(job_seconds=0.05) as server:
        response = httpx.post(f"{server.address}/v1/upscale", content=png(rgb(9, 700, 700)), timeout=30)
        assert problem(response) == (503, "JobCancelledError")


def test_two_hundred_clients_at_once_get_their_own_answers(server) -> None:
    upscaler = Upscaler("bsrn_light", threads=1)
    expected = [upscaler.upscale(rgb(seed, 12, 10)) for seed in range(200)]

    def ask(seed: int) -> np.ndarray:
        response = httpx.post(f"{server.address}/v1/upscale", content=png(rgb(seed, 12, 10)), timeout=120)
        assert response.status_code == 200, response.text
        return pixels_of(response.content)

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        for answer, right in zip(pool.map(ask, range(200)), expected, strict=True):
            np.testing.assert_array_equal(answer, right)


def test_other_addresses_need_a_token_and_foreign_pages_are_refused(server) -> None:
    with pytest.raises(ServeError, match="token"):
        ServeSettings(host="0.0.0.0")
    foreign = httpx.post(f"{server.address}/v1/upscale", headers={"Origin": "http://evil.example"}, content=b"x")
    assert problem(foreign) == (403, "ForeignOriginError")
    assert httpx.get(f"{server.address}/v1/models", headers={"Host": "evil.example"}).status_code == 400
    with running(token="open sesame") as guarded:
        assert problem(httpx.get(f"{guarded.address}/v1/models")) == (401, "TokenError")
        right = {"Authorization": "Bearer open sesame"}
        assert httpx.get(f"{guarded.address}/v1/models", headers=right).status_code == 200
        assert httpx.get(f"{guarded.address}/v1/models", params={"token": "open sesame"}).status_code == 200
        assert httpx.get(f"{guarded.address}/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/../settings.py", "/%2e%2e/app.py", "/divider/../upscaler.py", "//etc/passwd"])
def test_no_file_of_the_machine_can_be_read(server, path) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        assert b" 404 " in client.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../a.png", "a.png"),
        ("C:\\b\\c.jpg", "c.jpg"),
        ("x\n\x1b[31m.png", "x[31m.png"),
        ("..", "picture"),
        ("", "picture"),
    ],
)
def test_names_of_pictures_lose_folders_and_control_characters(sent, kept) -> None:
    assert plain_name(sent) == kept


def test_the_schema_holds_for_requests_of_all_kinds() -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    # A schema cannot say which bytes are a picture. Methods that no route has are Starlette's own to answer.
    checks = pytest.importorskip("schemathesis.specs.openapi.checks")
    excluded = [checks.positive_data_acceptance, checks.unsupported_method]
    with running(max_waiting=100, max_body_bytes=1 << 16, job_seconds=5.0) as server:
        schema = schemathesis.openapi.from_url(f"{server.address}/v1/openapi.json")
        for result in schema.get_all_operations():
            operation = result.ok()

            @given(case=operation.as_strategy())
            @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            def check(case) -> None:
                response = case.call()
                case.validate_response(response, excluded_checks=excluded)

            check()
