// Checks that a program's steps fit together in time: what is read has been written and its memory not been given away.
#include "runtime.h"
#include <stdlib.h>

typedef struct {
    const cc_program *program;
    char *written; // by value
} flow;

enum { READS = 4, WRITES = 2 };

static void reads_of(const cc_step *s, int reads[READS]) {
    reads[0] = s->input, reads[1] = s->routing, reads[2] = s->scale, reads[3] = s->residual;
}

static void writes_of(const cc_step *s, int writes[WRITES]) { writes[0] = s->output, writes[1] = s->pooled; }

static int overlap(const cc_value *a, const cc_value *b) {
    if (a == b) return 1;
    if (a->place != CC_SCRATCH || b->place != CC_SCRATCH || a->row_by_row != b->row_by_row) return 0;
    return a->offset < b->offset + (int64_t)cc_value_bytes(b) && b->offset < a->offset + (int64_t)cc_value_bytes(a);
}

static int same_memory(const cc_value *a, const cc_value *b) {
    return a == b || (overlap(a, b) && a->offset == b->offset && cc_value_bytes(a) == cc_value_bytes(b));
}

// Whether a step may write over what it reads, number by number.
static int in_place(const cc_step *s, int read, const cc_value *from, const cc_value *to) {
    if (s->kind <= CC_STEP_POOL || s->kind == CC_STEP_MAX_POOL) return 0; // these read what lies elsewhere
    return (read == s->input || read == s->residual) && from->type == to->type && same_memory(from, to);
}

static int check_reads(const flow *f, int number) {
    const cc_step *s = &f->program->steps[number];
    const cc_value *values = f->program->values;
    int reads[READS], writes[WRITES];
    reads_of(s, reads);
    writes_of(s, writes);
    for (int i = 0; i < READS; i++) {
        if (reads[i] < 0) continue;
        if (values[reads[i]].place != CC_INPUT && !f->written[reads[i]])
            return cc_fail("Step %d reads value %d, which nothing has written, or something has written over.", number,
                           reads[i]);
        for (int j = 0; j < WRITES; j++)
            if (writes[j] >= 0 && overlap(&values[reads[i]], &values[writes[j]]) &&
                !in_place(s, reads[i], &values[reads[i]], &values[writes[j]]))
                return cc_fail("Step %d writes value %d over value %d, which it reads.", number, writes[j], reads[i]);
    }
    if (writes[1] >= 0 && overlap(&values[writes[0]], &values[writes[1]]))
        return cc_fail("Step %d writes values %d and %d to the same memory.", number, writes[0], writes[1]);
    return 0;
}

static int check_writes(const flow *f, int number) {
    int writes[WRITES];
    writes_of(&f->program->steps[number], writes);
    for (int j = 0; j < WRITES; j++) {
        if (writes[j] < 0) continue;
        const cc_value *to = &f->program->values[writes[j]];
        if (to->place == CC_INPUT) return cc_fail("Step %d writes to input %d.", number, to->number);
        for (int i = 0; i < f->program->spec.values; i++)
            if (f->written[i] && overlap(&f->program->values[i], to)) f->written[i] = 0;
        f->written[writes[j]] = 1;
    }
    return 0;
}

// Row by row, a later row reads when an earlier one has written; so nothing may be written over another row's.
static int check_rows(const flow *f, const cc_stage *stage, int number) {
    const cc_value *values = f->program->values;
    int writes[WRITES], reads[READS];
    writes_of(&f->program->steps[number], writes);
    for (int j = 0; j < WRITES; j++) {
        if (writes[j] < 0 || values[writes[j]].place != CC_SCRATCH || values[writes[j]].row_by_row) continue;
        for (int step = stage->first; step < stage->last; step++) {
            reads_of(&f->program->steps[step], reads);
            for (int i = 0; i < READS; i++)
                if (reads[i] >= 0 && overlap(&values[reads[i]], &values[writes[j]]) &&
                    !same_memory(&values[reads[i]], &values[writes[j]]))
                    return cc_fail("Step %d writes value %d over other rows of value %d, which its stage reads.",
                                   number, writes[j], reads[i]);
            int others[WRITES];
            writes_of(&f->program->steps[step], others);
            for (int i = 0; i < WRITES; i++)
                if (others[i] >= 0 && overlap(&values[others[i]], &values[writes[j]]) &&
                    !same_memory(&values[others[i]], &values[writes[j]]))
                    return cc_fail("Step %d writes value %d over other rows of value %d, which its stage writes.",
                                   number, writes[j], others[i]);
        }
    }
    return 0;
}

static int uses_rows(const flow *f, int number) {
    const cc_step *s = &f->program->steps[number];
    int used[READS + WRITES];
    reads_of(s, used);
    writes_of(s, used + READS);
    for (int i = 0; i < READS + WRITES; i++) {
        const cc_value *v = used[i] < 0 ? NULL : &f->program->values[used[i]];
        if (v && v->place == CC_SCRATCH && v->row_by_row) return 1;
    }
    return 0;
}

static int check_stage(const flow *f, const cc_stage *stage) {
    for (int i = stage->first; i < stage->last; i++) {
        if (!stage->row_by_row && uses_rows(f, i))
            return cc_fail("Step %d uses a value of one row, and its stage doesn't run row by row.", i);
        if (check_reads(f, i) || check_writes(f, i) || (stage->row_by_row && check_rows(f, stage, i))) return -1;
    }
    for (int i = 0; i < f->program->spec.values; i++) // the next row, and the next stage, find none of it
        if (f->program->values[i].place == CC_SCRATCH && f->program->values[i].row_by_row) f->written[i] = 0;
    return 0;
}

int cc_program_check_flow(const cc_program *program) {
    flow f = {program, calloc((size_t)program->spec.values, 1)};
    if (!f.written) return cc_fail("There is no memory to check a program.");
    int failed = 0;
    for (int i = 0; i < program->spec.stages && !failed; i++) failed = check_stage(&f, &program->stages[i]);
    for (int i = 0; i < program->spec.values && !failed; i++)
        if (program->values[i].place == CC_OUTPUT && !f.written[i])
            failed = cc_fail("Nothing writes output %d.", program->values[i].number);
    free(f.written);
    return failed;
}
