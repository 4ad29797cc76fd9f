// Programs: made from checked lists of steps, counted, and run over a batch, chunk by chunk and stage by stage.
#include "runtime.h"
#include <stdlib.h>
#include <string.h>

static cc_table table = CC_TABLE;
static atomic_llong alive;

static void *copied(const void *from, int count, size_t size) {
    void *to = calloc((size_t)count + 1, size); // one more: none is no failure
    if (to && count) memcpy(to, from, (size_t)count * size);
    return to;
}

static void destroy(cc_program *program) {
    for (int i = 0; program->banks && i < program->spec.banks; i++) cc_bank_drop(program->banks[i]);
    free(program->banks);
    free(program->values);
    free(program->steps);
    free(program->stages);
    free(program);
}

static int keep_banks(cc_program *program, const int64_t *banks) {
    for (int i = 0; i < program->spec.banks; i++)
        if (!(program->banks[i] = cc_bank_keep(banks[i])))
            return cc_fail("Bank %d of the program is none, or was freed.", i);
    return 0;
}

static cc_program *make(const cc_program_spec *spec, const cc_value *values, const cc_step *steps,
                        const cc_stage *stages, const int64_t *banks) {
    cc_program *program = calloc(1, sizeof *program);
    if (!program) return cc_fail("There is no memory for a program."), NULL;
    program->spec = *spec;
    program->isa = cc_isa_now();
    atomic_init(&program->references, 1);
    memcpy(program->pixels.mean, spec->mean, sizeof spec->mean);
    memcpy(program->pixels.scale, spec->scale, sizeof spec->scale);
    program->values = copied(values, spec->values, sizeof *values);
    program->steps = copied(steps, spec->steps, sizeof *steps);
    program->stages = copied(stages, spec->stages, sizeof *stages);
    program->banks = calloc((size_t)spec->banks + 1, sizeof *program->banks);
    int failed = 0;
    if (!program->values || !program->steps || !program->stages || !program->banks)
        failed = cc_fail("There is no memory for a program of %d steps.", spec->steps);
    if (failed || keep_banks(program, banks) || cc_program_check(program)) {
        destroy(program);
        return NULL;
    }
    return program;
}

int64_t cc_program_new(const cc_program_spec *spec, const cc_value *values, const cc_step *steps,
                       const cc_stage *stages, const int64_t *banks) {
    if (!spec || !values || !steps || !stages || !banks)
        return cc_fail("A program needs a spec, values, steps, stages and banks.");
    if (cc_program_check_spec(spec)) return -1;
    cc_program *program = make(spec, values, steps, stages, banks);
    if (!program) return -1;
    int64_t number = cc_table_add(&table, program);
    if (number >= 0) atomic_fetch_add(&alive, 1);
    else destroy(program);
    return number >= 0 ? number : cc_fail("There is no memory for one more program.");
}

static void keep(void *program) { atomic_fetch_add(&((cc_program *)program)->references, 1); }

cc_program *cc_program_keep(int64_t number) { return cc_table_keep(&table, number, keep); }

void cc_program_drop(cc_program *program) {
    if (!program || atomic_fetch_sub(&program->references, 1) != 1) return;
    atomic_fetch_sub(&alive, 1);
    destroy(program);
}

void cc_program_release(int64_t number) { cc_program_drop(cc_table_remove(&table, number)); }

int64_t cc_programs_alive(void) { return atomic_load(&alive); }

const cc_value *cc_program_value(const cc_program *program, cc_place place, int number) {
    for (int i = 0; i < program->spec.values; i++) {
        const cc_value *v = &program->values[i];
        if (v->place == (int)place && v->number == number) return v;
    }
    return NULL;
}

static int run_steps(const cc_frame *frame, const cc_stage *stage) {
    for (int i = stage->first; i < stage->last; i++)
        if (cc_step_run(frame, &frame->program->steps[i])) return -1;
    return 0;
}

typedef struct {
    const cc_frame *frame;
    const cc_stage *stage;
} row_stage;

static size_t row_bytes(const cc_program *program) { return ((size_t)program->spec.row_bytes + 63) / 64 * 64; }

// One row of a stage, in scratch of the thread that computes it: for the call's own thread, where its arena begins.
static int run_row(void *context, int row) {
    const row_stage *r = context;
    cc_frame frame = *r->frame;
    frame.first = row;
    frame.rows = 1;
    frame.row_scratch = cc_scratch(CC_SCRATCH_VALUES, row_bytes(frame.program));
    return frame.row_scratch ? run_steps(&frame, r->stage) : -1;
}

// Rows are the better tasks, since they wait for each other only once; but each thread should get as many.
static int run_stage(cc_frame *frame, const cc_stage *stage) {
    if (!stage->row_by_row) return run_steps(frame, stage);
    int threads = cc_team_size(), rows = frame->chunk;
    row_stage context = {frame, stage};
    frame->alone = threads > 1 && (rows % threads == 0 || rows >= 3 * threads);
    int failed = 0;
    if (frame->alone) failed = cc_team_run(run_row, &context, rows);
    else
        for (int row = 0; row < rows && !failed; row++) failed = run_row(&context, row);
    frame->alone = 0;
    return failed;
}

static int run_chunk(cc_frame *frame) {
    const cc_program *program = frame->program;
    size_t own = row_bytes(program), all = own + (size_t)program->spec.chunk_bytes * (size_t)frame->chunk;
    char *arena = cc_scratch(CC_SCRATCH_VALUES, all);
    if (!arena) return -1;
    frame->row_scratch = arena;
    frame->chunk_scratch = arena + own;
    frame->first = 0;
    frame->rows = frame->chunk;
    for (int i = 0; i < program->spec.stages; i++)
        if (run_stage(frame, &program->stages[i])) return -1;
    return 0;
}

int cc_program_compute(const cc_program *program, int32_t rows, const void *const *inputs, void *const *outputs) {
    cc_frame frame = {.program = program, .inputs = inputs, .outputs = outputs};
    int failed = 0;
    cc_team_enter();
    while (frame.start < rows && !failed) {
        int64_t left = rows - frame.start;
        frame.chunk = left < program->spec.chunk ? (int)left : program->spec.chunk;
        failed = run_chunk(&frame);
        frame.start += frame.chunk;
    }
    cc_team_leave();
    return failed ? cc_fail("There is no memory to compute %d rows.", rows) : 0;
}

int32_t cc_program_run(int64_t number, int32_t rows, const void *const *inputs, void *const *outputs) {
    if (rows < 0) return cc_fail("A batch has 0 or more rows, not %d.", rows);
    if (!inputs || !outputs) return cc_fail("A program needs inputs and outputs.");
    cc_program *program = cc_program_keep(number);
    if (!program) return cc_fail("There is no such program, or it was freed.");
    int failed = cc_program_compute(program, rows, inputs, outputs);
    cc_program_drop(program);
    return failed;
}
