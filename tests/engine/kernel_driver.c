/* Runs a program of the packed engine that tests/test_packed_neon.py has written to a file, for processors other than
 * the one Python runs on. The file: counts, then blobs of memory with the addresses they had; pointers are translated.
 * Usage: kernel_driver ISA THREADS PROGRAM OUTPUT */
#include "bam.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int bam_isa_count(void);
const char *bam_isa_name(int isa);
int bam_run(int isa, const bam_stage *stages, int stage_count, const bam_map *maps, uint8_t *scratch,
            int64_t scratch_bytes, int threads);

typedef struct {
    uint64_t address, size;
    uint8_t *memory;
} blob;

static blob *blobs;
static uint64_t header[7]; /* blobs, stages, maps, scratch bytes, addresses of stages, maps and the output's data */

static void *moved(const void *pointer) {
    const uint64_t at = (uint64_t)pointer;
    if (!at) return NULL;
    for (uint64_t i = 0; i < header[0]; i++)
        if (at >= blobs[i].address && at < blobs[i].address + blobs[i].size)
            return blobs[i].memory + (at - blobs[i].address);
    fprintf(stderr, "no blob holds the address %llx\n", (unsigned long long)at);
    exit(3);
}

static blob *holding(uint64_t address) {
    for (uint64_t i = 0; i < header[0]; i++)
        if (blobs[i].address == address) return blobs + i;
    exit(4);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    FILE *file = fopen(argv[3], "rb");
    if (!file || fread(header, sizeof header, 1, file) != 1) return 2;
    blobs = calloc(header[0], sizeof *blobs);
    for (uint64_t i = 0; i < header[0]; i++) {
        if (fread(&blobs[i].address, 8, 1, file) != 1 || fread(&blobs[i].size, 8, 1, file) != 1) return 2;
        blobs[i].memory = aligned_alloc(64, (blobs[i].size + 127) / 64 * 64);
        if (fread(blobs[i].memory, 1, blobs[i].size, file) != blobs[i].size) return 2;
    }
    bam_stage *stages = moved((void *)header[4]);
    bam_map *maps = moved((void *)header[5]);
    for (uint64_t m = 0; m < header[2]; m++) {
        maps[m].data = moved(maps[m].data);
        maps[m].zeros = moved(maps[m].zeros);
    }
    for (uint64_t s = 0; s < header[1]; s++) {
        bam_op *ops = moved(stages[s].ops);
        stages[s].ops = ops;
        for (int k = 0; k < stages[s].op_count; k++) {
            const void **pointers[] = {&ops[k].p0, &ops[k].p1, &ops[k].p2, &ops[k].p3,
                                       &ops[k].p4, &ops[k].p5, &ops[k].p6};
            for (int p = 0; p < 7; p++) *pointers[p] = moved(*pointers[p]);
        }
    }
    int isa = 0;
    const int threads = atoi(argv[2]);
    while (isa < bam_isa_count() && strcmp(bam_isa_name(isa), argv[1])) isa++;
    if (isa == bam_isa_count()) return 5;
    uint8_t *scratch = aligned_alloc(64, header[3] * threads);
    if (bam_run(isa, stages, (int)header[1], maps, scratch, (int64_t)header[3], threads)) return 6;
    const blob *output = holding(header[6]);
    FILE *result = fopen(argv[4], "wb");
    return !result || fwrite(output->memory, 1, output->size, result) != output->size || fclose(result);
}
