"""A local page to drop photos on and a REST API, in one process: `bam serve`. Needs the extra `serve`.

settings.py: limits. jobs.py: the queue, its worker and the results. uploads.py: bodies of requests as files. app.py:
the API and the page. answers.py, guard.py, metrics.py: what it answers, what stands before it, what it counts. page/:
what the browser gets; it opens no outside connection.
"""
