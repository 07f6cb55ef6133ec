/* The dispatch table, the threads that share the rows of a stage, and the C ABI that kernels.py calls. */
#include "bam.h"

#include <stdlib.h>
#include <string.h>

#ifndef BAM_NO_THREADS
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#endif

#define ABI_VERSION 5

static const bam_isa *const table[] = {
#ifdef BAM_BUILD_AVX512
    &bam_isa_avx512,
#endif
#ifdef BAM_BUILD_AVX2
    &bam_isa_avx2,
#endif
#ifdef BAM_BUILD_NEON
    &bam_isa_neon,
#endif
    &bam_isa_portable,
};
#define TABLE_SIZE ((int)(sizeof table / sizeof *table))

int bam_abi_version(void) { return ABI_VERSION; }
int bam_isa_count(void) { return TABLE_SIZE; }
const char *bam_isa_name(int isa) { return table[isa]->name; }
int bam_isa_lanes(int isa) { return table[isa]->lanes; }
int bam_isa_max_vectors(int isa) { return table[isa]->max_vectors; }
int bam_isa_dot_bytes(int isa) { return table[isa]->dot_bytes; }
uint64_t bam_count_steps(int isa, int64_t steps, uint64_t seed) { return table[isa]->count_steps(steps, seed); }
int bam_isa_supported(int isa) { return table[isa]->supported(); }

/* The numbers that Python shares with the kernels, by name; -1 for any other. */
int bam_number(const char *name) {
    static const struct {
        const char *name;
        int value;
    } numbers[] = {
        {"group", BAM_GROUP},
        {"narrow", BAM_NARROW},
        {"max_kernel", BAM_MAX_KERNEL},
        {"max_tile", BAM_MAX_TILE},
        {"max_patch", BAM_MAX_PATCH},
        {"max_threads", BAM_MAX_THREADS},
        {"byte_zero", BAM_BYTE_ZERO},
        {"slack_pixels", BAM_SLACK_PIXELS},
        {"float_slack", BAM_FLOAT_SLACK},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(numbers[i].name, name)) return numbers[i].value;
    return -1;
}

/* The operations by their codes; NULL behind the last one. */
const char *bam_operation_name(int code) {
    const bam_isa *isa = &bam_isa_portable;
    return code >= 0 && code < isa->operation_count ? isa->operations[code].name : NULL;
}

/* So that Python can compare with its own idea of the layouts. */
int bam_sizeof(int what) {
    return (int)(what == 0 ? sizeof(bam_map) : what == 1 ? sizeof(bam_op) : what == 2 ? sizeof(bam_stage) : 0);
}

static void run_row(const bam_isa *isa, const bam_stage *stage, const bam_map *maps, uint8_t *scratch, int y) {
    for (int x = 0; x < stage->width; x += stage->tile) {
        const int count = stage->width - x < stage->tile ? stage->width - x : stage->tile;
        isa->tile(stage, maps, scratch, y, x, count);
    }
}

#ifdef BAM_NO_THREADS

int bam_run(int isa, const bam_stage *stages, int stage_count, const bam_map *maps, uint8_t *scratch,
            int64_t scratch_bytes, int threads) {
    (void)scratch_bytes, (void)threads;
    for (int s = 0; s < stage_count; s++)
        for (int y = stages[s].row_begin; y < stages[s].row_end; y++) run_row(table[isa], stages + s, maps, scratch, y);
    return 0;
}

#else

typedef struct {
    const bam_isa *isa;
    const bam_stage *stages;
    const bam_map *maps;
    uint8_t *scratch;
    int64_t scratch_bytes;
    int stage_count, threads;
    atomic_int ready, arrived, round;
    atomic_int *next_row; /* one per stage */
} job_t;

typedef struct {
    job_t *job;
    int number;
} worker_t;

/* Waits until all threads of the job have come here. Spins shortly, then lets others run. */
static void wait_for_all(job_t *job) {
    const int round = atomic_load(&job->round);
    if (atomic_fetch_add(&job->arrived, 1) == job->threads - 1) {
        atomic_store(&job->arrived, 0);
        atomic_fetch_add(&job->round, 1);
        return;
    }
    for (int spins = 0; atomic_load(&job->round) == round; spins++)
        if (spins > 2000) sched_yield();
}

/* Which thread takes which row depends on chance; what it computes there does not. */
static void *work(void *argument) {
    const worker_t *worker = argument;
    job_t *job = worker->job;
    while (!atomic_load(&job->ready)) sched_yield(); /* until it is known how many threads there are */
    uint8_t *scratch = job->scratch + worker->number * job->scratch_bytes;
    for (int s = 0; s < job->stage_count; s++) {
        const bam_stage *stage = job->stages + s;
        for (int y; (y = stage->row_begin + atomic_fetch_add(job->next_row + s, 1)) < stage->row_end;)
            run_row(job->isa, stage, job->maps, scratch, y);
        if (job->threads > 1) wait_for_all(job);
    }
    return NULL;
}

/* Runs the stages one after the other, their rows on `threads` threads. `scratch` holds threads * scratch_bytes bytes.
 * Returns 0, or 1 when there is no memory. */
int bam_run(int isa, const bam_stage *stages, int stage_count, const bam_map *maps, uint8_t *scratch,
            int64_t scratch_bytes, int threads) {
    if (threads > BAM_MAX_THREADS) threads = BAM_MAX_THREADS;
    job_t job = {.isa = table[isa],
                 .stages = stages,
                 .maps = maps,
                 .scratch = scratch,
                 .scratch_bytes = scratch_bytes,
                 .stage_count = stage_count};
    worker_t workers[BAM_MAX_THREADS];
    pthread_t handles[BAM_MAX_THREADS];
    job.next_row = calloc((size_t)stage_count + 1, sizeof *job.next_row);
    if (!job.next_row) return 1;
    int started = 1;
    for (; started < threads; started++) {
        workers[started] = (worker_t){&job, started};
        if (pthread_create(handles + started, NULL, work, workers + started)) break; /* go on with those there are */
    }
    job.threads = started;
    atomic_store(&job.ready, 1);
    workers[0] = (worker_t){&job, 0};
    work(workers);
    for (int i = 1; i < started; i++) pthread_join(handles[i], NULL);
    free(job.next_row);
    return 0;
}

#endif
